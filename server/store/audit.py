"""The audit log in Postgres; rows are never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields

import sqlalchemy as sa

from server.domain.audit import AuditEvent, AuditFilter
from server.store.connections.connect import Database
from server.store.tables import audit_events as table

_COLUMNS = [table.c[field.name] for field in fields(AuditEvent)]


class PostgresAudit:
    """Stores events, in the order of their ids."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, event: AuditEvent) -> None:
        """Write an event; the store assigns its id."""
        row = asdict(event)
        del row["id"]
        async with self._database.transaction() as connection:
            await connection.execute(sa.insert(table).values(row))

    async def page(
        self, filters: AuditFilter, before: int | None, size: int
    ) -> Sequence[AuditEvent]:
        """Return at most `size` events older than `before`, the newest first."""
        query = sa.select(*_COLUMNS).order_by(table.c.id.desc()).limit(size)
        if before is not None:
            query = query.where(table.c.id < before)
        if filters.user_id:
            query = query.where(table.c.user_id == filters.user_id)
        if filters.event:
            query = query.where(table.c.event == filters.event)
        if filters.since:
            query = query.where(table.c.at >= filters.since)
        if filters.until:
            query = query.where(table.c.at < filters.until)
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            return [AuditEvent(**row._mapping) for row in rows]
