"""The audit log in Postgres; rows are never changed.

The event of a change is written in its transaction, see `change_records`. Events of
refusals, and of calls that changed nothing, are written in batches in the background.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import fields

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.audit import AuditEvent, AuditFilter
from server.domain.errors import StoreUnavailable
from server.store.change_records import WRITE_AUDIT, render_events
from server.store.connections.connect import Database
from server.store.tables import audit_events as table

log = structlog.get_logger()
BATCH_SIZE = 500
MAX_WAITING = 10_000
RETRY_SECONDS = 0.5
DRAIN_TIMEOUT_SECONDS = 5.0
_COLUMNS = [table.c[field.name] for field in fields(AuditEvent)]


class PostgresAudit:
    """Stores events, in the order of their ids."""

    name = "audit"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[AuditEvent] = deque()
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()

    def add_later(self, event: AuditEvent) -> None:
        """Write an event soon. While MAX_WAITING of them wait, others are lost."""
        if len(self._waiting) >= MAX_WAITING:
            log.error("audit event lost", event_name=event.event, outcome=event.outcome)
            return
        self._waiting.append(event)
        self._wake.set()

    async def run(self) -> None:
        """Write events as they come, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.flush()
            except StoreUnavailable as error:
                log.warning("audit events wait", cause=repr(error.__cause__))
                self._wake.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def flush(self) -> None:
        """Write what waits. Raises StoreUnavailable; what is not written still waits.

        A batch whose outcome is unknown is written again: an event may appear twice.
        """
        async with self._writing:
            while self._waiting:
                batch = list(self._waiting)[:BATCH_SIZE]
                await self._write(batch)
                for _ in batch:
                    self._waiting.popleft()

    async def drain(self) -> None:
        """Write what waits, before the process stops."""
        async with asyncio.timeout(DRAIN_TIMEOUT_SECONDS):
            await self.flush()

    async def add(self, event: AuditEvent) -> None:
        """Write an event; the store assigns its id. Raises StoreUnavailable."""
        await self._write([event])

    async def _write(self, events: Sequence[AuditEvent]) -> None:
        await self._database.run(WRITE_AUDIT, audit=render_events(events))

    async def page(
        self, filters: AuditFilter, before: int | None, size: int
    ) -> Sequence[AuditEvent]:
        """Return at most `size` events older than `before`, the newest first.

        What this process has to write yet is written before. A replica may serve all
        pages but the first.
        """
        await self.flush()
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

        async def read(connection: AsyncConnection) -> Sequence[AuditEvent]:
            rows = await connection.execute(query)
            return [AuditEvent(**row._mapping) for row in rows]

        return await self._database.reads(stale=before is not None).read(read)
