"""Revocation sessions: rows in Postgres that every process polls.

A Redis message makes the other processes poll at once; without Redis they see a
log-out with their next poll. Each poll reads from the oldest transaction that was
open at the poll before, so that a row which commits late is not skipped; a row may
be read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.auth.revocation_watch import Revocation
from server.domain.clock import Clock
from server.domain.credentials.revocations import REVOCATION_RETENTION, Revocations
from server.domain.event_buffer import EventBuffer
from server.store.backups.restored_at import LAST_RESTORED_AT
from server.store.connections.connect import Database
from server.store.connections.signals import Signals
from server.store.connections.wakeup_channel import WakeupChannel
from server.store.tables import revocations, sessions

# Its messages announce every change. The release before publishes revocations on it and
# polls all changes for each message, so that the name stays.
CHANNEL = "academy:revocations"
# A literal: the planner uses a partial index only if it can prove its condition.
_HAS_ACTOR = sessions.c.actor_id > sa.literal_column("0")


async def revoke(
    connection: AsyncConnection, session_ids: Sequence[UUID], now: datetime
) -> None:
    """Revoke the access tokens of these sessions, in the caller's transaction."""
    rows = [{"session_id": session_id, "ended_at": now} for session_id in session_ids]
    if rows:
        await connection.execute(sa.insert(revocations).values(rows))


async def end_sessions(
    connection: AsyncConnection, user_id: int, now: datetime, keep: UUID | None = None
) -> Sequence[UUID]:
    """End a user's sessions except `keep`, in the caller's transaction.

    Those in which the user, an admin, acts as another one end, too.
    """
    acting = sa.and_(sessions.c.actor_id == user_id, _HAS_ACTOR)
    owned = sa.or_(sessions.c.user_id == user_id, acting)
    conditions = [owned, sessions.c.ended_at.is_(None)]
    if keep:
        conditions.append(sessions.c.id != keep)
    ended = await connection.execute(
        sa.update(sessions)
        .where(*conditions)
        .values(ended_at=now)
        .returning(sessions.c.id)
    )
    ids: Sequence[UUID] = ended.scalars().all()
    await revoke(connection, ids, now)
    return ids


class RevocationFeed:
    """Keeps this process's Revocations up to date and buffers them for streams."""

    def __init__(
        self, database: Database, redis: Redis, known: Revocations, clock: Clock
    ) -> None:
        self._database = database
        self._known = known
        self._clock = clock
        self._oldest_open = 0
        self._last_ids: frozenset[int] = frozenset()
        self._oldest_open_column: sa.ColumnClause[int] = sa.literal_column(
            database.settled_changes.oldest_open
        )
        self.buffer: EventBuffer[Revocation] = EventBuffer()
        self.wakeups = WakeupChannel(redis, CHANNEL)

    async def ended(self, session_ids: Sequence[UUID], now: datetime) -> None:
        """Revoke sessions in this process and wake the others, after the commit."""
        for session_id in session_ids:
            self._known.add(session_id.hex, now)
        if session_ids:
            self.wakeups.publish()

    @property
    def position(self) -> tuple[int, datetime]:
        """Return the first transaction and the oldest end of a session to read."""
        return self._oldest_open, self._clock() - REVOCATION_RETENTION

    async def refresh(self) -> None:
        """Read the rows written since the last poll. Raises StoreUnavailable."""
        await self._read(await self._read_oldest_open())

    async def follow(self, signals: Signals) -> None:
        """Do the same with what the signals say. Raises StoreUnavailable."""
        if signals.has_revocations:
            await self._read(signals.oldest_open)
        else:
            self._add([], signals.oldest_open)

    async def _read(self, oldest: int) -> None:
        """Read the rows since the last poll, after `oldest` was read.

        Rows that are written in between are read again by the next poll.
        """
        async with self._database.reading() as connection:
            rows = (await connection.execute(_written_since(*self.position))).all()
        self._add(rows, oldest)

    def _add(self, rows: Sequence[sa.Row[Any]], oldest: int) -> None:
        self._oldest_open = oldest
        for row in rows:
            self._known.add(row.session_id.hex, row.ended_at)
        # while a transaction stays open, every poll reads the same rows again
        new = [_revoked(row, oldest) for row in rows if row.id not in self._last_ids]
        self._last_ids = frozenset(row.id for row in rows)
        self.buffer.extend(new)

    async def resume_from(self, token: int) -> tuple[int, int]:
        """Return the transaction to resume from, and the token of the present.

        A token from the future (of another database) resumes from the beginning, and
        so does every token if the database was restored: transaction ids of the time
        that it has lost are used again. Raises StoreUnavailable.
        """
        query = sa.select(self._oldest_open_column, LAST_RESTORED_AT.scalar_subquery())
        async with self._database.reading() as connection:
            oldest, restored_at = (await connection.execute(query)).one()
        is_usable = restored_at is None and token <= oldest
        return (token if is_usable else 0), oldest

    async def _read_oldest_open(self) -> int:
        async with self._database.reading() as connection:
            result = await connection.execute(sa.select(self._oldest_open_column))
            return result.scalar_one()

    async def chunk(self, since: int, after_id: int, size: int) -> Sequence[Revocation]:
        """Return revocations in force, written since a transaction, by id."""
        query = _written_since(since, self._clock() - REVOCATION_RETENTION)
        query = query.where(revocations.c.id > after_id)
        query = query.order_by(revocations.c.id).limit(size)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [_revoked(row, since) for row in rows]


def _written_since(
    since: int, ended_after: datetime
) -> sa.Select[tuple[int, UUID, datetime]]:
    table = revocations.c
    return sa.select(table.id, table.session_id, table.ended_at).where(
        table.written_by >= since, table.ended_at >= ended_after
    )


def _revoked(row: sa.Row[Any], token: int) -> Revocation:
    return Revocation(row.id, row.session_id.hex, row.ended_at, token)
