"""The outbox in Postgres: written in the transaction of the change it follows."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.outbox.entries import NewEntry
from server.store.tables import outbox


async def enqueue(
    connection: AsyncConnection, now: datetime, *entries: NewEntry
) -> None:
    """Write entries in the caller's transaction: they are told if it commits."""
    rows = [asdict(entry) | {"created_at": now} for entry in entries]
    if rows:
        await connection.execute(sa.insert(outbox), rows)
