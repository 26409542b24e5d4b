"""What is kept no longer than it serves: swept in small batches, by any process.

Rows are taken with SKIP LOCKED, so that processes share the work and none waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from server.domain.clock import Clock
from server.domain.credentials.revocations import REVOCATION_RETENTION
from server.domain.idempotency import RESPONSE_RETENTION
from server.domain.outbox.entries import State
from server.store.accounts.erasure import erase
from server.store.connect import Database
from server.store.credentials.revocations import RevocationFeed
from server.store.tables import (
    mailed_tokens,
    notifications,
    outbox,
    posts,
    request_answers,
    revocations,
    sessions,
    users,
)

BATCH = 200
SWEEP_INTERVAL = timedelta(minutes=1)
# they tell a device that was seen before from a new one
SESSIONS_KEPT = timedelta(days=30)
# a day's tokens are counted
TOKENS_KEPT = timedelta(days=1)
# how far back a stream of changes can be taken up again
ENTRIES_KEPT = timedelta(days=7)
# an operator's time to put them back
DEAD_KEPT = timedelta(days=30)
# a post that is noted twice is told once
NOTIFICATIONS_KEPT = timedelta(days=90)
POSTS_KEPT = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Expiry:
    """Which rows of a table have served; the condition is one an index answers."""

    table: sa.Table
    over: sa.ColumnElement[bool]


def expiries(now: datetime) -> list[Expiry]:
    """Give what no longer serves."""
    old_session = now - SESSIONS_KEPT
    return [
        Expiry(sessions, sessions.c.expires_at < old_session),
        Expiry(sessions, sessions.c.ended_at < old_session),
        Expiry(revocations, revocations.c.ended_at < now - REVOCATION_RETENTION),
        Expiry(mailed_tokens, mailed_tokens.c.expires_at < now - TOKENS_KEPT),
        Expiry(
            request_answers, request_answers.c.answered_at < now - RESPONSE_RETENTION
        ),
        _settled(State.DELIVERED, now - ENTRIES_KEPT),
        _settled(State.DEAD, now - DEAD_KEPT),
        Expiry(notifications, notifications.c.created_at < now - NOTIFICATIONS_KEPT),
        Expiry(posts, posts.c.deleted_at < now - POSTS_KEPT),
    ]


def _settled(state: State, before: datetime) -> Expiry:
    over = sa.and_(outbox.c.state == state, outbox.c.delivered_at < before)
    return Expiry(outbox, over)


class Retention:
    """Erases deleted users after `kept`, and what else has served."""

    def __init__(
        self, database: Database, feed: RevocationFeed, kept: timedelta, clock: Clock
    ) -> None:
        self._database = database
        self._feed = feed
        self._kept = kept
        self._clock = clock

    async def sweep(self) -> None:
        """Erase all that has served. Raises StoreUnavailable."""
        now = self._clock()
        for expiry in expiries(now):
            deleted = BATCH
            while deleted == BATCH:
                deleted = await self._delete(expiry)
        while await self._erase_one(now):
            pass

    async def _delete(self, expiry: Expiry) -> int:
        """Delete a batch of rows; give how many that were."""
        table = expiry.table
        keys = list(table.primary_key.columns)
        some = (
            sa.select(*keys)
            .where(expiry.over)
            .limit(BATCH)
            .with_for_update(skip_locked=True)
            .cte("some")
        )
        same = [key == some.c[key.name] for key in keys]
        statement = sa.delete(table).where(*same).returning(*keys)
        async with self._database.transaction() as connection:
            return len((await connection.execute(statement)).all())

    async def _erase_one(self, now: datetime) -> bool:
        """Erase a user who was deleted long enough ago; False if there is none."""
        query = (
            sa.select(users.c.id)
            .where(users.c.deleted_at < now - self._kept)
            .order_by(users.c.deleted_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        async with self._database.transaction() as connection:
            user_id = (await connection.execute(query)).scalar()
            if user_id is None:
                return False
            ended = await erase(connection, user_id, now)
        await self._feed.ended(ended, now)
        return True
