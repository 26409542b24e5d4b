"""Counting the posts and followers of members in Postgres."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.members.scores import MemberCounts
from server.domain.posts.posts import PostState
from server.store.accounts.deleted import is_not_deleted
from server.store.accounts.user_reads import NOT_DELETED
from server.store.connections.connect import Database
from server.store.keyset import capped_count
from server.store.mapping import entity_of
from server.store.tables import follows, posts, users


class PostgresMetrics:
    """Counts posts and followers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def counts(self, user_id: int) -> MemberCounts | None:
        """Return a member's counts, by one statement; None for an unknown account.

        Counts stop just above 10,000, where a score no longer changes visibly. A
        replica may serve them, if it knows the account.
        """
        published = sa.select(sa.literal(1)).where(
            posts.c.user_id == user_id, posts.c.state == PostState.PUBLISHED
        )
        followers = (
            sa.select(sa.literal(1))
            .select_from(follows)
            .where(follows.c.followed_id == user_id)
            .where(is_not_deleted(follows.c.follower_id))
        )
        query = sa.select(
            capped_count(published).label("posts"),
            capped_count(followers).label("followers"),
            users.c.created_at,
        ).where(users.c.id == user_id, NOT_DELETED)

        async def read(connection: AsyncConnection) -> MemberCounts | None:
            row = (await connection.execute(query)).first()
            return entity_of(MemberCounts, row) if row else None

        return await self._database.reads(stale=True).read(read, is_found=bool)
