"""Where something about a user is held: every table that names one.

A table that names users by a foreign key, or in a column `user_id`, is found by
itself; those that name them otherwise stand here. A test holds that each of them is
emptied by erasing, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.accounts.personal_data import Document
from server.domain.errors import UserNotFound
from server.store.accounts.erasure import Erasures, begin_erasure
from server.store.accounts.users import locked, refuse_last_admin
from server.store.connect import Database
from server.store.credentials.revocations import RevocationFeed
from server.store.tables import (
    audit_events,
    metadata,
    notifications,
    outbox,
    request_answers,
    users,
)

Condition = sa.ColumnElement[bool]
ADDRESS_BUDGET = timedelta(seconds=1)


def _answers(user_id: int) -> Condition:
    own = request_answers.c.caller == f"user:{user_id}"
    return sa.or_(own, request_answers.c.about.contains([user_id]))


def _outbox(user_id: int) -> Condition:
    mine = [
        outbox.c.address.in_(sa.select(name).where(users.c.id == user_id))
        for name in (users.c.email, users.c.username_folded)
    ]
    return sa.or_(outbox.c.user_id == user_id, *mine)


def _events(user_id: int) -> Condition:
    done = audit_events.c.actor == f"user:{user_id}"
    return sa.or_(audit_events.c.user_id == user_id, done)


def _news(user_id: int) -> Condition:
    # what an author's followers asked to be told of is theirs alone
    return notifications.c.user_id == user_id


_NAMED_OTHERWISE: dict[sa.Table, Callable[[int], Condition]] = {
    users: lambda user_id: users.c.id == user_id,
    request_answers: _answers,
    outbox: _outbox,
    audit_events: _events,
    notifications: _news,
}
# Hashes and what is sealed are bytes; beside them, what would tell of others.
_LEFT_OUT = frozenset({users.c.hashed_password, request_answers.c.about})


class PostgresPersonalData:
    """Gives and erases what is held about one user."""

    def __init__(
        self,
        database: Database,
        feed: RevocationFeed,
        erased: Callable[[int], None],
        erasures: Erasures,
    ) -> None:
        self._database = database
        self._feed = feed
        self._erased = erased
        self._erasures = erasures

    async def erase(
        self, user_id: int, now: datetime, budget: timedelta = ADDRESS_BUDGET
    ) -> None:
        """Erase a user and end their sessions. Raises UserNotFound, LastAdmin.

        When `budget` is spent, the addresses of audit events that are left are cleared
        in the background.
        """
        async with self._database.transaction() as connection:
            await _check(connection, user_id)
            ended = await begin_erasure(connection, user_id, now)
        self._erased(user_id)
        await self._feed.ended(ended, now)
        await self._erasures.erase_account(user_id, budget)

    async def held(self, user_id: int) -> Document:
        """Give what is held about a user, without secrets; no account: no rows."""
        document = {}
        async with self._database.reading() as connection:
            for table in tables_about_users():
                query = sa.select(*_shown(table)).where(_about(table, user_id))
                rows = await connection.execute(query.order_by(*table.primary_key))
                document[table.name] = [dict(row._mapping) for row in rows]
        for event in document[audit_events.name]:
            if event["actor"] not in (f"user:{user_id}", "anonymous"):
                event["address"] = ""  # where another one was is theirs
        return document


async def _check(connection: AsyncConnection, user_id: int) -> None:
    """Lock the account; one that is deleted softly already is nobody's last admin."""
    try:
        before = await locked(connection, user_id, admins=True)
    except UserNotFound:
        query = sa.select(users.c.id).where(users.c.id == user_id)
        if (await connection.execute(query)).first() is None:
            raise
    else:
        await refuse_last_admin(connection, before, {"is_active": False})


def tables_about_users() -> Iterator[sa.Table]:
    """Give the tables that hold something about users."""
    for table in metadata.sorted_tables:
        if table in _NAMED_OTHERWISE or user_columns(table):
            yield table


def user_columns(table: sa.Table) -> list[sa.Column[int]]:
    """Give the columns that hold a user's id."""
    return [
        column
        for column in table.columns
        if column.name == "user_id" or column.references(users.c.id)
    ]


def _about(table: sa.Table, user_id: int) -> Condition:
    if table in _NAMED_OTHERWISE:
        return _NAMED_OTHERWISE[table](user_id)
    return sa.or_(*(column == user_id for column in user_columns(table)))


def _shown(table: sa.Table) -> list[sa.Column[object]]:
    return [
        column
        for column in table.columns
        if column not in _LEFT_OUT and not isinstance(column.type, BYTEA)
    ]
