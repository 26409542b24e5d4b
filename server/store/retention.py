"""Delete rows at the end of their retention, a batch in each transaction.

Rows are selected with SKIP LOCKED, so that processes share the work without waiting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa

from server.domain.credentials.revocations import REVOCATION_RETENTION
from server.domain.idempotency import RESPONSE_RETENTION
from server.domain.outbox.entries import EntryState
from server.store.backups.restored_at import IS_RESTORATION
from server.store.connections.connect import Database
from server.store.tables import (
    audit_events,
    challenges,
    factors,
    mailed_tokens,
    notifications,
    outbox,
    posts,
    request_answers,
    revocations,
    sessions,
)

BATCH_SIZE = 1_000
# they distinguish a known device from a new one
SESSION_RETENTION = timedelta(days=30)
# the number of tokens a day is limited
TOKEN_RETENTION = timedelta(days=1)
# to confirm a new factor
ENROLMENT_RETENTION = timedelta(hours=1)
# how far back a stream of changes can be resumed
ENTRY_RETENTION = timedelta(days=7)
# an operator's time to retry dead letters
DEAD_LETTER_RETENTION = timedelta(days=30)
# a post that is published again within it is not notified again
NOTIFICATION_RETENTION = timedelta(days=90)
POST_RETENTION = timedelta(days=30)

# Deletes one batch; returns whether more rows may remain.
Deletion = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Expiry:
    """Rows of a table at the end of their retention; the condition uses an index."""

    table: sa.Table
    expired: sa.ColumnElement[bool]


def expiries(now: datetime, audit_retention: timedelta) -> list[Expiry]:
    """Return what has expired by now."""
    old_session = now - SESSION_RETENTION
    old_response = now - RESPONSE_RETENTION
    old_notification = now - NOTIFICATION_RETENTION
    return [
        Expiry(sessions, sessions.c.expires_at < old_session),
        Expiry(sessions, sessions.c.ended_at < old_session),
        Expiry(revocations, revocations.c.ended_at < now - REVOCATION_RETENTION),
        Expiry(mailed_tokens, mailed_tokens.c.expires_at < now - TOKEN_RETENTION),
        Expiry(challenges, challenges.c.expires_at < now),
        Expiry(factors, _unconfirmed(now - ENROLMENT_RETENTION)),
        Expiry(request_answers, request_answers.c.answered_at < old_response),
        _finished_entries(EntryState.DELIVERED, now - ENTRY_RETENTION),
        _finished_entries(EntryState.DEAD, now - DEAD_LETTER_RETENTION),
        Expiry(notifications, notifications.c.created_at < old_notification),
        Expiry(posts, posts.c.deleted_at < now - POST_RETENTION),
        Expiry(
            audit_events,
            sa.and_(audit_events.c.at < now - audit_retention, ~IS_RESTORATION),
        ),
    ]


def _finished_entries(state: EntryState, before: datetime) -> Expiry:
    expired = sa.and_(outbox.c.state == state, outbox.c.delivered_at < before)
    return Expiry(outbox, expired)


def _unconfirmed(before: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(factors.c.confirmed_at.is_(None), factors.c.created_at < before)


class PostgresRetention:
    """Deletes expired rows; the audit log's retention is a setting."""

    def __init__(
        self,
        database: Database,
        audit_retention: timedelta,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self._database = database
        self._audit_retention = audit_retention
        self._batch_size = batch_size

    def deletions(self, now: datetime) -> Sequence[tuple[str, Deletion]]:
        """Return what deletes expired rows, each with the name of its table."""
        return [
            (expiry.table.name, partial(self._delete_batch, expiry))
            for expiry in expiries(now, self._audit_retention)
        ]

    async def _delete_batch(self, expiry: Expiry) -> bool:
        table = expiry.table
        keys = list(table.primary_key.columns)
        batch = (
            sa.select(*keys)
            .where(expiry.expired)
            .limit(self._batch_size)
            .with_for_update(skip_locked=True)
            .cte("batch")
        )
        same = [key == batch.c[key.name] for key in keys]
        statement = sa.delete(table).where(*same).returning(sa.literal(1))
        async with self._database.transaction() as connection:
            deleted = len((await connection.execute(statement)).all())
        return deleted == self._batch_size
