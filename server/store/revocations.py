"""Ended sessions, told to every process: rows in Postgres, hurried by Redis.

Each process reads the new rows twice a second. Rows are read from the oldest
transaction that was still open at the last look, so that one which commits late
is not skipped; reading a row twice does no harm. Redis carries a hint that there
is something to read; without it a logout is seen within the half second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.clock import Clock
from server.domain.credentials.revocations import KEPT, Revocations
from server.domain.errors import StoreUnavailable
from server.store.connect import Database
from server.store.tables import revocations, sessions

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
    """Keeps this process's Revocations as Postgres says."""

    def __init__(
        self, database: Database, redis: Redis, known: Revocations, clock: Clock
    ) -> None:
        self._database = database
        self._redis = redis
        self._known = known
        self._clock = clock
        self._from = 0
        self._hint = asyncio.Event()

    async def ended(self, session_ids: Sequence[UUID], now: datetime) -> None:
        """Know, once it is committed, that sessions have ended; hint to the others.

        A lost hint costs them half a second.
        """
        for session_id in session_ids:
            self._known.add(session_id.hex, now)
        try:
            if session_ids:
                await self._redis.publish(CHANNEL, b"")
        except (RedisError, OSError):
            log.debug("revocation hint lost")

    async def look(self) -> None:
        """Read what has come since the last look. Raises StoreUnavailable."""
        since = self._clock() - KEPT
        query = sa.select(revocations.c.session_id, revocations.c.ended_at).where(
            revocations.c.written_by >= self._from, revocations.c.ended_at >= since
        )
        async with self._database.reading() as connection:
            # asked first: what is written in between is read again next time
            oldest = (await connection.execute(sa.select(_OLDEST_OPEN))).scalar_one()
            rows = (await connection.execute(query)).all()
        self._from = oldest
        for session_id, ended_at in rows:
            self._known.add(session_id.hex, ended_at)

    async def follow(self) -> None:
        """Look twice a second, and at once on a hint, until cancelled."""
        while True:
            try:
                await self.look()
            except StoreUnavailable as error:
                log.warning("revocations cannot be read", cause=repr(error.__cause__))
            await self._next_look()

    async def _next_look(self) -> None:
        try:
            async with asyncio.timeout(SECONDS_BETWEEN_LOOKS):
                await self._hint.wait()
        except TimeoutError:
            return
        self._hint.clear()

    async def listen(self) -> None:
        """Take the other processes' hints, until cancelled."""
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    await self._relay(channel)
            except (RedisError, OSError):
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

    async def _relay(self, channel: PubSub) -> None:
        while True:
            wait = SECONDS_BETWEEN_LOOKS
            if await channel.get_message(ignore_subscribe_messages=True, timeout=wait):
                self._hint.set()
