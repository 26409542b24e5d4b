"""Ended sessions, told to every process: rows in Postgres, hurried by Redis.

Each process reads the new rows twice a second, once for all who want to know. Rows
are read from the oldest transaction that was still open at the last look, so that one
which commits late is not skipped; reading a row twice does no harm. Redis carries a
hint that there is something to read; without it a logout is seen within the half
second.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
import structlog
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.clock import Clock
from server.domain.credentials.revocations import KEPT, Revocations
from server.domain.errors import StoreUnavailable
from server.domain.event_buffer import EventBuffer
from server.domain.revocation_watch import Revoked
from server.store.connect import Database
from server.store.tables import revocations, sessions
from server.store.wakeup_channel import WakeupChannel

log = structlog.get_logger()
CHANNEL = "academy:revocations"
SECONDS_BETWEEN_LOOKS = 0.5
_OLDEST_OPEN = sa.text("pg_snapshot_xmin(pg_current_snapshot())::text::bigint")


async def revoke(
    connection: AsyncConnection, session_ids: Sequence[UUID], now: datetime
) -> None:
    """Write that these sessions' access tokens are refused from `now` on."""
    rows = [{"session_id": session_id, "ended_at": now} for session_id in session_ids]
    if rows:
        await connection.execute(sa.insert(revocations).values(rows))


async def end_sessions(
    connection: AsyncConnection, user_id: int, now: datetime, keep: UUID | None = None
) -> Sequence[UUID]:
    """End a user's sessions but the one to keep, in the caller's transaction."""
    open_ones = [sessions.c.user_id == user_id, sessions.c.ended_at.is_(None)]
    if keep:
        open_ones.append(sessions.c.id != keep)
    ended = await connection.execute(
        sa.update(sessions)
        .where(*open_ones)
        .values(ended_at=now)
        .returning(sessions.c.id)
    )
    ids: Sequence[UUID] = ended.scalars().all()
    await revoke(connection, ids, now)
    return ids


class RevocationFeed:
    """Keeps this process's Revocations as Postgres says, and tells those who watch."""

    def __init__(
        self, database: Database, redis: Redis, known: Revocations, clock: Clock
    ) -> None:
        self._database = database
        self._known = known
        self._clock = clock
        self._from = 0
        self._told: frozenset[int] = frozenset()
        self._wakeups = WakeupChannel(redis, CHANNEL)
        self.buffer: EventBuffer[Revoked] = EventBuffer()
        self.listen = self._wakeups.listen

    async def ended(self, session_ids: Sequence[UUID], now: datetime) -> None:
        """Know, once it is committed, that sessions have ended; hint to the others.

        A lost hint costs them half a second.
        """
        for session_id in session_ids:
            self._known.add(session_id.hex, now)
        if session_ids:
            await self._wakeups.publish()

    async def refresh(self) -> None:
        """Read what has come since the last look. Raises StoreUnavailable."""
        query = _known_since(self._from, self._clock() - KEPT)
        async with self._database.reading() as connection:
            # asked first: what is written in between is read again next time
            oldest = (await connection.execute(sa.select(_OLDEST_OPEN))).scalar_one()
            rows = (await connection.execute(query)).all()
        self._from = oldest
        for row in rows:
            self._known.add(row.session_id.hex, row.ended_at)
        # a transaction that stays open has the same rows read again and again
        new = [_revoked(row, oldest) for row in rows if row.id not in self._told]
        self._told = frozenset(row.id for row in rows)
        self.buffer.extend(new)

    async def run(self) -> None:
        """Look twice a second, and at once on a hint, until cancelled."""
        while True:
            try:
                await self.refresh()
            except StoreUnavailable as error:
                log.warning("revocations cannot be read", cause=repr(error.__cause__))
            await self._wakeups.wait(SECONDS_BETWEEN_LOOKS)

    async def place(self, token: int) -> tuple[int, int]:
        """Give where to begin after a resume token, and the token of the present.

        A token of another database's future is one of none. Raises StoreUnavailable.
        """
        async with self._database.reading() as connection:
            oldest = (await connection.execute(sa.select(_OLDEST_OPEN))).scalar_one()
        return (token if token <= oldest else 0), oldest

    async def chunk(self, since: int, after_id: int, size: int) -> Sequence[Revoked]:
        """Give revocations in force, from a place on, in the order of ids."""
        query = _known_since(since, self._clock() - KEPT)
        query = query.where(revocations.c.id > after_id)
        query = query.order_by(revocations.c.id).limit(size)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [_revoked(row, since) for row in rows]


def _known_since(since: int, moment: datetime) -> sa.Select[tuple[int, UUID, datetime]]:
    table = revocations.c
    return sa.select(table.id, table.session_id, table.ended_at).where(
        table.written_by >= since, table.ended_at >= moment
    )


def _revoked(row: sa.Row[Any], token: int) -> Revoked:
    return Revoked(row.id, row.session_id.hex, row.ended_at, token)
