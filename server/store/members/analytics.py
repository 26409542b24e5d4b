"""What is counted of members, in Postgres: stale at once, counted anew soon.

However much happens to a member in between, it is counted once; a count that was
ever wrong mends itself.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.posts.posts import State
from server.store.connect import Database
from server.store.tables import follows, posts, sessions, users
from server.store.tables import user_analytics as table

_POSTS = (
    sa.select(sa.func.count())
    .where(posts.c.user_id == table.c.user_id, posts.c.state == State.PUBLISHED)
    .scalar_subquery()
)
_FOLLOWERS = (
    sa.select(sa.func.count())
    .select_from(follows.join(users, users.c.id == follows.c.follower_id))
    .where(follows.c.followed_id == table.c.user_id, users.c.deleted_at.is_(None))
    .scalar_subquery()
)
_LAST_SEEN = (
    sa.select(sa.func.max(sessions.c.last_used_at))
    .where(sessions.c.user_id == table.c.user_id)
    .scalar_subquery()
)


async def mark_followed_by(connection: AsyncConnection, user_id: int) -> None:
    """Have everybody counted anew whom a member follows, in a transaction."""
    followed = sa.select(follows.c.followed_id).where(follows.c.follower_id == user_id)
    await connection.execute(
        sa.update(table)
        .where(table.c.user_id.in_(followed), sa.not_(table.c.stale))
        .values(stale=True)
    )


class PostgresAnalytics:
    """Keeps what is counted of members."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def mark(self, user_id: int) -> None:
        """Have a member counted anew soon; one who is gone is nobody's to count."""
        there = sa.select(users.c.id).where(users.c.id == user_id)
        statement = insert(table).from_select(["user_id"], there)
        async with self._database.transaction() as connection:
            await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[table.c.user_id], set_={"stale": True}
                )
            )

    async def mark_followed_by(self, user_id: int) -> None:
        """Have everybody counted anew whom a member follows."""
        async with self._database.transaction() as connection:
            await mark_followed_by(connection, user_id)

    async def count(self, size: int, now: datetime) -> int:
        """Count some members anew who need it; give how many those were."""
        some = (
            sa.select(table.c.user_id)
            .where(table.c.stale)
            .order_by(table.c.user_id)
            .limit(size)
            .with_for_update(skip_locked=True)
            .cte("some")
        )
        # what was noted before outlives the session that it was read from
        seen = sa.func.greatest(table.c.last_seen_at, _LAST_SEEN)
        statement = (
            sa.update(table)
            .where(table.c.user_id == some.c.user_id)
            .values(
                posts=_POSTS,
                followers=_FOLLOWERS,
                last_seen_at=seen,
                counted_at=now,
                stale=False,
            )
            .returning(table.c.user_id)
        )
        async with self._database.transaction() as connection:
            return len((await connection.execute(statement)).all())
