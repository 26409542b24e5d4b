"""Everything stored about a user: exported section by section, and erased.

A section is a table. Tables that name users by a foreign key or a column `user_id`
are found by their schema; those that name them otherwise are listed here. A test
checks that each of them is exported and erased.

An export reads batches by key and holds no connection between them. Each batch is one
statement, so an export is no snapshot, see docs/decisions/exports.md. A replica may
serve a batch; whether the account exists is asked at the primary.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, array
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.accounts.personal_data import ExportBatch
from server.domain.errors import UserNotFound
from server.store.accounts.erasure import Erasures, begin_erasure
from server.store.accounts.users import locked, refuse_last_admin
from server.store.connections.connect import Database
from server.store.credentials.revocations import RevocationFeed
from server.store.tables import (
    audit_events,
    challenges,
    follows,
    metadata,
    notifications,
    outbox,
    posts,
    request_answers,
    users,
)

BATCH_SIZE = 500  # rows
_BATCH_SIZES = {posts: 20}  # bodies are long: at most 4 MB in memory
Condition = sa.ColumnElement[bool]
ADDRESS_BUDGET = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class RowSet:
    """Some rows about a user, and the key in whose order an index returns them."""

    condition: Condition
    key: Sequence[sa.Column[object]]


def _idempotent_responses(user_id: int) -> list[RowSet]:
    own = request_answers.c.caller == f"user:{user_id}"
    about = request_answers.c.about.contains([user_id])
    return [_by_primary_key(request_answers, sa.or_(own, about))]


def _outbox(user_id: int) -> list[RowSet]:
    # two sets, each of which has an index
    about = outbox.c.user_id == user_id
    names = [
        sa.select(name).where(users.c.id == user_id).scalar_subquery()
        for name in (users.c.email, users.c.username_folded)
    ]
    to_user = outbox.c.address == sa.any_(array(names))
    return [
        _by_primary_key(outbox, about),
        _by_primary_key(outbox, sa.and_(to_user, about.is_not(sa.true()))),
    ]


def _audit_events(user_id: int) -> list[RowSet]:
    # two sets: an index is in the order of ids for one of the columns only
    about = audit_events.c.user_id == user_id
    by_user = audit_events.c.actor == f"user:{user_id}"
    return [
        _by_primary_key(audit_events, about),
        _by_primary_key(audit_events, sa.and_(by_user, sa.not_(about))),
    ]


def _notifications(user_id: int) -> list[RowSet]:
    # those that an author's followers received are the followers' data only
    return [_by_primary_key(notifications, notifications.c.user_id == user_id)]


def _follows(user_id: int) -> list[RowSet]:
    since = follows.c.created_at
    return [
        RowSet(follows.c.follower_id == user_id, (since, follows.c.followed_id)),
        RowSet(follows.c.followed_id == user_id, (since, follows.c.follower_id)),
    ]


def _by_primary_key(table: sa.Table, condition: Condition) -> RowSet:
    return RowSet(condition, tuple(table.primary_key))


_ROW_SETS: dict[sa.Table, Callable[[int], list[RowSet]]] = {
    users: lambda user_id: [_by_primary_key(users, users.c.id == user_id)],
    request_answers: _idempotent_responses,
    outbox: _outbox,
    audit_events: _audit_events,
    notifications: _notifications,
    follows: _follows,
}
# Beside hashes and encrypted values, which are bytes: ids of other users, and secrets
# of log-ins that are not complete.
_NOT_EXPORTED = frozenset(
    {users.c.hashed_password, request_answers.c.about, challenges.c.data}
)


class PostgresPersonalData:
    """Exports and erases everything stored about a user."""

    def __init__(
        self,
        database: Database,
        feed: RevocationFeed,
        on_erased: Callable[[int], None],
        erasures: Erasures,
    ) -> None:
        self._database = database
        self._feed = feed
        self._on_erased = on_erased
        self._erasures = erasures

    async def erase(
        self, user_id: int, now: datetime, budget: timedelta = ADDRESS_BUDGET
    ) -> None:
        """Erase a user and end their sessions. Raises UserNotFound, LastAdmin.

        When `budget` is spent, the addresses of audit events that are left are cleared
        in the background.
        """
        async with self._database.transaction() as connection:
            await _check_may_be_erased(connection, user_id)
            ended = await begin_erasure(connection, user_id, now)
        self._on_erased(user_id)
        await self._feed.ended(ended, now)
        await self._erasures.erase_account(user_id, budget)

    async def exists(self, user_id: int) -> bool:
        """Return whether the account exists; a soft-deleted one does."""
        query = sa.select(users.c.id).where(users.c.id == user_id)
        async with self._database.reading() as connection:
            return (await connection.execute(query)).first() is not None

    async def export(self, user_id: int) -> AsyncGenerator[ExportBatch, None]:
        """Yield everything stored about a user, without secrets, section by section."""
        for table in tables_about_users():
            yield ExportBatch(table.name, [])
            for row_set in _row_sets(table, user_id):
                async with aclosing(self._batches(table, row_set)) as batches:
                    async for rows in batches:
                        values = [_exported_values(table, row, user_id) for row in rows]
                        yield ExportBatch(table.name, values)

    async def _batches(
        self, table: sa.Table, row_set: RowSet
    ) -> AsyncGenerator[Sequence[sa.RowMapping], None]:
        """Yield the rows of a set in the order of its key, in batches."""
        size = _BATCH_SIZES.get(table, BATCH_SIZE)
        columns = dict.fromkeys([*_exported_columns(table), *row_set.key])
        query = (
            sa.select(*columns)
            .where(row_set.condition)
            .order_by(*row_set.key)
            .limit(size)
        )
        page = query
        reader, more = self._database.reads(stale=True), True
        while more:
            rows = await reader.read(partial(_execute, page))
            if rows:
                yield rows
                page = query.where(_after(row_set.key, rows[-1]))
            more = len(rows) == size


async def _execute(
    query: sa.Select[Any], connection: AsyncConnection
) -> Sequence[sa.RowMapping]:
    result = await connection.execute(query)
    rows: Sequence[sa.RowMapping] = result.mappings().all()
    return rows


def _after(key: Sequence[sa.Column[object]], row: sa.RowMapping) -> Condition:
    last = sa.tuple_(*(sa.literal(row[column.name], column.type) for column in key))
    return sa.tuple_(*key) > last


def _exported_values(
    table: sa.Table, row: sa.RowMapping, user_id: int
) -> dict[str, object]:
    """Return the values of a row that the user may see, by column."""
    values = {column.name: row[column.name] for column in _exported_columns(table)}
    if table is audit_events and row["actor"] not in (f"user:{user_id}", "anonymous"):
        values["address"] = ""  # that of another user
    return values


def _exported_columns(table: sa.Table) -> list[sa.Column[object]]:
    return [
        column
        for column in table.columns
        if column not in _NOT_EXPORTED and not isinstance(column.type, BYTEA)
    ]


async def _check_may_be_erased(connection: AsyncConnection, user_id: int) -> None:
    """Lock the account; a soft-deleted one cannot be the last admin.

    Raises UserNotFound, LastAdmin.
    """
    try:
        before = await locked(connection, user_id, admins=True)
    except UserNotFound:
        query = sa.select(users.c.id).where(users.c.id == user_id)
        if (await connection.execute(query)).first() is None:
            raise
    else:
        await refuse_last_admin(connection, before, {"is_active": False})


def tables_about_users() -> Iterator[sa.Table]:
    """Return the tables that store something about users."""
    for table in metadata.sorted_tables:
        if table in _ROW_SETS or user_columns(table):
            yield table


def user_columns(table: sa.Table) -> list[sa.Column[int]]:
    """Return the columns that hold a user's id."""
    return [
        column
        for column in table.columns
        if column.name == "user_id" or column.references(users.c.id)
    ]


def _row_sets(table: sa.Table, user_id: int) -> list[RowSet]:
    if table in _ROW_SETS:
        return _ROW_SETS[table](user_id)
    condition = sa.or_(*(column == user_id for column in user_columns(table)))
    return [_by_primary_key(table, condition)]
