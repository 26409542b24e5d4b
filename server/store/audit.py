"""The audit log in Postgres; written once, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa

from server.domain.audit import AuditEvent, AuditFilter
from server.store.connect import Database
from server.store.mapping import entity_of
from server.store.tables import audit_events as table


class PostgresAudit:
    """Keeps events, in the order of their ids."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, event: AuditEvent) -> None:
        """Write an event; its id is given by the store."""
        row = asdict(event)
        del row["id"]
        async with self._database.transaction() as connection:
            await connection.execute(sa.insert(table).values(row))

    async def page(
        self, wanted: AuditFilter, before: int | None, size: int
    ) -> Sequence[AuditEvent]:
        """Give at most `size` events older than `before`, the newest first."""
        query = sa.select(table).order_by(table.c.id.desc()).limit(size)
        if before is not None:
            query = query.where(table.c.id < before)
        if wanted.user_id:
            query = query.where(table.c.user_id == wanted.user_id)
        if wanted.event:
            query = query.where(table.c.event == wanted.event)
        if wanted.since:
            query = query.where(table.c.at >= wanted.since)
        if wanted.until:
            query = query.where(table.c.at < wanted.until)
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            return [entity_of(AuditEvent, row) for row in rows]
