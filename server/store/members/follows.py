"""Follows in Postgres, read in the order of following from either side."""

from __future__ import annotations

from datetime import datetime
from functools import partial

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from server.domain.errors import TokenInvalid, UserNotFound
from server.domain.members.follows import Follow, Side
from server.domain.outbox.entries import EventType, NewEntry
from server.domain.paging import MAX_OFFSET, PageRequest, Rows
from server.store.accounts.user_reads import NOT_DELETED, USER_COLUMNS, user_of
from server.store.connect import Database
from server.store.keyset import Estimates, Keyset, capped_count, counted
from server.store.outbox import enqueue
from server.store.tables import follows as table
from server.store.tables import users
from server.store.writing import Refusals, writing

# By side: whose list it is, and who stands in it.
_COLUMNS = {
    Side.FOLLOWERS: (table.c.followed_id, table.c.follower_id),
    Side.FOLLOWING: (table.c.follower_id, table.c.followed_id),
}


class PostgresFollows:
    """Keeps follows."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._estimates = Estimates()

    async def add(self, follower_id: int, followed_id: int, now: datetime) -> None:
        """Write a follow, unless there is one.

        Raises UserNotFound; and TokenInvalid if the follower is erased meanwhile.
        """
        there = sa.select(users.c.id).where(users.c.id == followed_id, NOT_DELETED)
        row = {"follower_id": follower_id, "followed_id": followed_id}
        statement = insert(table).values(**row, created_at=now)
        by = {"follower": follower_id}
        gone: Refusals = {
            "fk_follows_followed_id": partial(UserNotFound, followed_id),
            "fk_follows_follower_id": partial(TokenInvalid, "the account is erased"),
        }
        async with writing(self._database, None, gone) as connection:
            if (await connection.execute(there)).first() is None:
                raise UserNotFound(followed_id)
            new = statement.on_conflict_do_nothing().returning(table.c.follower_id)
            if (await connection.execute(new)).first():
                told = NewEntry(EventType.FOLLOWED, followed_id, payload=by)
                await enqueue(connection, now, told)

    async def remove(self, follower_id: int, followed_id: int, now: datetime) -> None:
        """Take a follow away, if there is one."""
        statement = sa.delete(table).where(
            table.c.follower_id == follower_id, table.c.followed_id == followed_id
        )
        by = {"follower": follower_id}
        async with self._database.transaction() as connection:
            ended = statement.returning(table.c.follower_id)
            if (await connection.execute(ended)).first():
                told = NewEntry(EventType.UNFOLLOWED, followed_id, payload=by)
                await enqueue(connection, now, told)

    async def page(
        self, side: Side, user_id: int, *, newest_first: bool, request: PageRequest
    ) -> Rows[Follow]:
        """Give one page in the order of following, by at most three statements.

        Deleted accounts are neither listed nor counted.
        """
        whose, who = _COLUMNS[side]
        rows = sa.select(sa.literal(1)).join_from(table, users, users.c.id == who)
        rows = rows.where(whose == user_id, NOT_DELETED)
        count = capped_count(rows)
        keyset = Keyset(table.c.created_at, who, newest_first)
        query = rows.with_only_columns(*USER_COLUMNS, table.c.created_at, count)
        async with self._database.reading() as connection:
            found = (await connection.execute(keyset.turned(query, request))).all()
            known = found[0][-1] if found else None
            total = await counted(
                connection, known, count, rows, self._estimates, (side, user_id)
            )
        items = [Follow(user_of(row[:-2]), row[-2]) for row in found[: request.size]]
        return Rows(items, len(found) > request.size, total, total > MAX_OFFSET)
