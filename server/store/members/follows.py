"""Follows in Postgres, listed from either side in the order of following."""

from __future__ import annotations

from datetime import datetime
from functools import partial

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.errors import TokenInvalid, UserNotFound
from server.domain.members.follows import Follow, Side
from server.domain.outbox.entries import EventType, NewEntry
from server.domain.paging import MAX_OFFSET, PageRequest, Rows
from server.store.accounts.deleted import is_not_deleted
from server.store.accounts.user_reads import NOT_DELETED, USER_COLUMNS, user_of
from server.store.change_records import record
from server.store.connections.connect import Database
from server.store.keyset import Estimates, Keyset, capped_count, total_of
from server.store.tables import follows as table
from server.store.tables import users
from server.store.write_transaction import ConstraintErrors, write_transaction

# By side: the column of the list's owner, and that of its members.
_COLUMNS = {
    Side.FOLLOWERS: (table.c.followed_id, table.c.follower_id),
    Side.FOLLOWING: (table.c.follower_id, table.c.followed_id),
}


class PostgresFollows:
    """Stores follows."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._estimates = Estimates()

    async def add(self, follower_id: int, followed_id: int, now: datetime) -> None:
        """Write a follow unless it exists.

        Raises UserNotFound, and TokenInvalid if the follower is erased meanwhile.
        """
        followed = sa.select(users.c.id).where(users.c.id == followed_id, NOT_DELETED)
        row = {"follower_id": follower_id, "followed_id": followed_id}
        statement = insert(table).values(**row, created_at=now)
        event = NewEntry(
            EventType.FOLLOWED, followed_id, payload={"follower": follower_id}
        )
        violated: ConstraintErrors = {
            "fk_follows_followed_id": partial(UserNotFound, followed_id),
            "fk_follows_follower_id": partial(TokenInvalid, "the account is erased"),
        }
        async with write_transaction(self._database, None, violated) as connection:
            if (await connection.execute(followed)).first() is None:
                raise UserNotFound(followed_id)
            insertion = statement.on_conflict_do_nothing()
            inserted = await connection.execute(
                insertion.returning(table.c.follower_id)
            )
            if inserted.first():
                await record(connection, now, event)

    async def remove(self, follower_id: int, followed_id: int, now: datetime) -> None:
        """Delete a follow if it exists."""
        statement = sa.delete(table).where(
            table.c.follower_id == follower_id, table.c.followed_id == followed_id
        )
        event = NewEntry(
            EventType.UNFOLLOWED, followed_id, payload={"follower": follower_id}
        )
        async with self._database.transaction() as connection:
            deleted = await connection.execute(statement.returning(table.c.follower_id))
            if deleted.first():
                await record(connection, now, event)

    async def page(
        self, side: Side, user_id: int, *, newest_first: bool, request: PageRequest
    ) -> Rows[Follow]:
        """Return one page in the order of following, with at most three statements.

        Deleted accounts are neither listed nor counted.
        """
        owner, member = _COLUMNS[side]
        matching = (
            sa.select(sa.literal(1))
            .select_from(table)
            .where(owner == user_id, is_not_deleted(member))
        )
        count = capped_count(matching)
        keyset = Keyset(table.c.created_at, member, newest_first)
        since = table.c.created_at.label("since")
        query = (
            sa.select(*USER_COLUMNS, since, count.label("total"))
            .join_from(table, users, users.c.id == member)
            .where(owner == user_id, NOT_DELETED)
        )

        async def read(connection: AsyncConnection) -> Rows[Follow]:
            rows = (await connection.execute(keyset.page(query, request))).all()
            total = await total_of(
                connection,
                rows[0].total if rows else None,
                count,
                matching,
                self._estimates,
                (side, user_id),
            )
            items = [Follow(user_of(row), row.since) for row in rows[: request.size]]
            return Rows(items, len(rows) > request.size, total, total > MAX_OFFSET)

        return await self._database.reads(stale=request.allows_stale).read(read)
