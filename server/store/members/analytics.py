"""Counts of members in Postgres: an event marks them stale, a job recounts them.

However many events concern a member in between, they are recounted once. A wrong
count is corrected by the next recount.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.posts.posts import PostState
from server.store.accounts.deleted import is_not_deleted
from server.store.connections.connect import Database
from server.store.tables import follows, posts, sessions, users
from server.store.tables import user_analytics as table

_POSTS = (
    sa.select(sa.func.count())
    .where(posts.c.user_id == table.c.user_id, posts.c.state == PostState.PUBLISHED)
    .scalar_subquery()
)
_FOLLOWERS = (
    sa.select(sa.func.count())
    .select_from(follows)
    .where(follows.c.followed_id == table.c.user_id)
    .where(is_not_deleted(follows.c.follower_id))
    .scalar_subquery()
)
_LAST_SEEN = (
    sa.select(sa.func.max(sessions.c.last_used_at))
    .where(sessions.c.user_id == table.c.user_id)
    .scalar_subquery()
)


async def mark_followed_by(connection: AsyncConnection, user_id: int) -> None:
    """Mark everyone whom a member follows as stale, in the caller's transaction."""
    followed = sa.select(follows.c.followed_id).where(follows.c.follower_id == user_id)
    await connection.execute(
        sa.update(table)
        .where(table.c.user_id.in_(followed), sa.not_(table.c.stale))
        .values(stale=True)
    )


class PostgresAnalytics:
    """Stores the counts of members."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def mark(self, user_id: int) -> None:
        """Mark a member as stale; an account that is gone is ignored."""
        existing = sa.select(users.c.id).where(users.c.id == user_id)
        statement = insert(table).from_select(["user_id"], existing)
        async with self._database.transaction() as connection:
            await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[table.c.user_id], set_={"stale": True}
                )
            )

    async def mark_followed_by(self, user_id: int) -> None:
        """Mark everyone whom a member follows as stale."""
        async with self._database.transaction() as connection:
            await mark_followed_by(connection, user_id)

    async def count(self, size: int, now: datetime) -> int:
        """Recount at most `size` stale members; return how many."""
        batch = (
            sa.select(table.c.user_id)
            .where(table.c.stale)
            .order_by(table.c.user_id)
            .limit(size)
            .with_for_update(skip_locked=True)
            .cte("batch")
        )
        # sessions are deleted after a while; what they showed is kept
        last_seen_at = sa.func.greatest(table.c.last_seen_at, _LAST_SEEN)
        statement = (
            sa.update(table)
            .where(table.c.user_id == batch.c.user_id)
            .values(
                posts=_POSTS,
                followers=_FOLLOWERS,
                last_seen_at=last_seen_at,
                counted_at=now,
                stale=False,
            )
            .returning(table.c.user_id)
        )
        async with self._database.transaction() as connection:
            return len((await connection.execute(statement)).all())
