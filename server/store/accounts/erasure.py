"""Erase an account and the data about it (GDPR art. 17), in committed batches.

`begin_erasure` removes the identity in one short transaction. `Erasures` deletes the
rest in batches: first the rows that reference the account, then the account, then
the addresses in audit events. So an account with millions of rows needs no long
transaction. A row in `erasures` records the progress until the erasure is complete;
any process continues from there. The id is never used again.

That row also remains until the erasure log has the id. The log is written after the
commit, because it must not name a user whose erasure was rolled back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.errors import StoreUnavailable
from server.domain.outbox.entries import MAIL, EventType, NewEntry
from server.store.accounts.erasure_log import ErasureLog
from server.store.change_records import record
from server.store.connections.connect import Database
from server.store.credentials.revocations import RevocationFeed, end_sessions
from server.store.members.analytics import mark_followed_by
from server.store.tables import (
    audit_events,
    erasures,
    metadata,
    outbox,
    request_answers,
    users,
)

BATCH_SIZE = 2_000
# The time of deletion of an account whose erasure has begun: it cannot be undeleted.
ERASURE_BEGUN = datetime(1970, 1, 1, tzinfo=UTC)
# The new version, and the event of the erasure, remove the account from every cache.
_BLANK = {
    "email": sa.func.concat("erased:", users.c.id),
    "username": "",
    "username_folded": sa.func.concat("erased:", users.c.id),
    "hashed_password": "",
    "deleted_at": ERASURE_BEGUN,
    "version": users.c.version + 1,
}


async def begin_erasure(
    connection: AsyncConnection,
    user_id: int,
    now: datetime,
    deleted_before: datetime | None = None,
) -> Sequence[UUID]:
    """Remove an account's identity in the caller's transaction.

    Return the sessions that it ended. Nothing is changed if there is no such account,
    if it was not deleted before then, or if its erasure has begun already.
    """
    query = sa.select(users.c.email, users.c.username_folded).where(
        users.c.id == user_id, users.c.deleted_at.is_distinct_from(ERASURE_BEGUN)
    )
    if deleted_before:
        query = query.where(users.c.deleted_at < deleted_before)
    account = (await connection.execute(query.with_for_update())).first()
    if account is None:
        return []
    ended = await end_sessions(connection, user_id, now)
    await _delete_mails(connection, user_id, list(account))
    await _delete_responses(connection, user_id)
    await mark_followed_by(connection, user_id)
    await connection.execute(
        sa.update(users).where(users.c.id == user_id).values(_BLANK)
    )
    row = {"account_id": user_id, "begun_at": now}
    await connection.execute(sa.insert(erasures).values(row))
    event = NewEntry(EventType.USER_ERASED, user_id)
    await record(connection, now, event, user_id=user_id)
    return ended


async def _delete_mails(
    connection: AsyncConnection, user_id: int, names: Sequence[str]
) -> None:
    """Delete e-mails to the user; their events hold no more than the id."""
    own = sa.and_(
        outbox.c.user_id == user_id, outbox.c.kind.startswith(MAIL, autoescape=True)
    )
    await connection.execute(
        sa.delete(outbox).where(sa.or_(own, outbox.c.address.in_(names)))
    )


async def _delete_responses(connection: AsyncConnection, user_id: int) -> None:
    """Delete stored responses to the user, and those that contain the user."""
    condition = sa.or_(
        request_answers.c.caller == f"user:{user_id}",
        request_answers.c.about.contains([user_id]),
    )
    await connection.execute(sa.delete(request_answers).where(condition))


async def delete_account(connection: AsyncConnection, user_id: int) -> None:
    """Delete the row of an account whose erasure has begun."""
    begun = users.c.deleted_at == ERASURE_BEGUN
    await connection.execute(sa.delete(users).where(users.c.id == user_id, begun))


class Erasures:
    """Begins and continues erasures."""

    def __init__(
        self,
        database: Database,
        feed: RevocationFeed,
        batch_size: int = BATCH_SIZE,
        log: ErasureLog | None = None,
    ) -> None:
        self._database = database
        self._feed = feed
        self._batch_size = batch_size
        self._log = log
        self._logged: set[int] = set()  # by this process, and not complete
        self.wake = asyncio.Event()  # set when a call leaves an erasure unfinished

    async def due(
        self, deleted_before: datetime, after: int, size: int
    ) -> Sequence[int]:
        """Return ids of accounts to erase: deleted before then, or begun; by id."""
        deleted = sa.select(users.c.id).where(users.c.deleted_at < deleted_before)
        due = sa.union(deleted, sa.select(erasures.c.account_id)).subquery()
        (account_id,) = due.columns
        query = sa.select(account_id).where(account_id > after)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.order_by(account_id).limit(size))
            return rows.scalars().all()

    async def erase(
        self, user_id: int, now: datetime, deleted_before: datetime, budget: timedelta
    ) -> bool:
        """Begin or continue an erasure that is due; return whether it is complete.

        It stops after the batch during which `budget` is spent. Raises
        StoreUnavailable; what was committed stays erased.
        """
        async with self._database.transaction() as connection:
            ended = await begin_erasure(connection, user_id, now, deleted_before)
            query = sa.select(erasures).where(erasures.c.account_id == user_id)
            if (await connection.execute(query)).first() is None:
                return True  # undeleted, or erased by another process meanwhile
        await self._feed.ended(ended, now)
        with suppress(StoreUnavailable):  # `_finish` tries again
            await self._append_to_log(user_id)
        batches = _chained(self._delete_rows(user_id), self._clear_addresses(user_id))
        return await self._finish(user_id, batches, budget)

    async def erase_again(self, user_id: int, now: datetime, budget: timedelta) -> None:
        """Erase an account of a restored database. Raises StoreUnavailable.

        It may be that of the last admin: the user was erased before.
        """
        async with self._database.transaction() as connection:
            await begin_erasure(connection, user_id, now)
        await self.erase_account(user_id, budget)

    async def erase_account(self, user_id: int, budget: timedelta) -> None:
        """Continue an erasure until the account and its rows are deleted.

        First the erasure is logged: the caller may be told that the user is erased
        only if a restored backup cannot bring them back. `budget` bounds the clearing
        of addresses in audit events, which follows; what it leaves is cleared by
        `erase`. Raises StoreUnavailable.
        """
        await self._append_to_log(user_id)
        async for _ in self._delete_rows(user_id):
            pass
        if not await self._finish(user_id, self._clear_addresses(user_id), budget):
            self.wake.set()

    async def _finish(
        self, user_id: int, batches: AsyncGenerator[None, None], budget: timedelta
    ) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + budget.total_seconds()
        async with aclosing(batches):
            async for _ in batches:
                if loop.time() >= deadline:
                    return False
        await self._append_to_log(user_id)
        statement = sa.delete(erasures).where(erasures.c.account_id == user_id)
        async with self._database.transaction() as connection:
            await connection.execute(statement)
        self._logged.discard(user_id)
        return True

    async def _append_to_log(self, user_id: int) -> None:
        """Append the user to the erasure log, once. Raises StoreUnavailable."""
        if self._log and user_id not in self._logged:
            await self._log.append(user_id)
            self._logged.add(user_id)

    async def _delete_rows(self, user_id: int) -> AsyncGenerator[None, None]:
        """Delete the account and what references it; yield after each full batch."""
        for column in _references():
            while await self._delete_batch(column, user_id):
                yield
        async with self._database.transaction() as connection:
            await delete_account(connection, user_id)

    async def _delete_batch(self, column: sa.Column[int], user_id: int) -> bool:
        """Delete a batch of rows; return whether more may remain."""
        table = column.table
        keys = list(table.primary_key.columns)
        batch = (
            sa.select(*keys)
            .where(column == user_id)
            .limit(self._batch_size)
            .with_for_update(skip_locked=True)
            .cte("batch")
        )
        same = [key == batch.c[key.name] for key in keys]
        statement = sa.delete(table).where(*same).returning(sa.literal(1))
        async with self._database.transaction() as connection:
            deleted = len((await connection.execute(statement)).all())
        return deleted == self._batch_size

    async def _clear_addresses(self, user_id: int) -> AsyncGenerator[None, None]:
        """Clear the addresses in audit events; yield after each full batch."""
        about = audit_events.c.user_id == user_id
        while await self._clear_batch(user_id, about, erasures.c.last_event):
            yield
        by = audit_events.c.actor == f"user:{user_id}"
        while await self._clear_batch(user_id, by, erasures.c.last_actor_event):
            yield

    async def _clear_batch(
        self, user_id: int, condition: sa.ColumnElement[bool], last: sa.Column[int]
    ) -> bool:
        """Clear a batch of events after `last`; return whether more may follow."""
        erasure = erasures.c.account_id == user_id
        async with self._database.transaction() as connection:
            query = sa.select(last).where(erasure).with_for_update()
            after = (await connection.execute(query)).scalar()
            if after is None:  # completed by another process
                return False
            events = (
                sa.select(audit_events.c.id)
                .where(condition, audit_events.c.id > after)
                .order_by(audit_events.c.id)
                .limit(self._batch_size)
            )
            ids = (await connection.execute(events)).scalars().all()
            if not ids:
                return False
            await connection.execute(
                sa.update(audit_events)
                .where(audit_events.c.id.in_(ids), audit_events.c.address != "")
                .values(address="")
            )
            moved = sa.update(erasures).where(erasure).values({last.name: ids[-1]})
            await connection.execute(moved)
        return len(ids) == self._batch_size


def _references() -> Sequence[sa.Column[int]]:
    """Return the foreign keys to accounts; those that are referenced come last."""
    tables = reversed(metadata.sorted_tables)
    columns = chain.from_iterable(table.columns for table in tables)
    return [column for column in columns if column.references(users.c.id)]


async def _chained(
    *parts: AsyncGenerator[None, None],
) -> AsyncGenerator[None, None]:
    """Yield from one generator after the other."""
    for part in parts:
        async with aclosing(part):
            async for _ in part:
                yield
