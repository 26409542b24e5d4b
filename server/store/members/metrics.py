"""What members have done, counted in Postgres."""

from __future__ import annotations

import sqlalchemy as sa

from server.domain.members.scores import Counted
from server.domain.posts.posts import State
from server.store.accounts.user_reads import NOT_DELETED
from server.store.connect import Database
from server.store.keyset import capped_count
from server.store.tables import follows, posts, users

_FOLLOWER = users.alias()


class PostgresMetrics:
    """Counts what members have done."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def counted(self, user_id: int) -> Counted | None:
        """Count, by one statement, to just above 10,000 of each.

        What is above that no longer moves a score that is told to people.
        """
        written = sa.select(sa.literal(1)).where(
            posts.c.user_id == user_id, posts.c.state == State.PUBLISHED
        )
        supervise = (
            sa.select(sa.literal(1))
            .join_from(follows, _FOLLOWER, _FOLLOWER.c.id == follows.c.follower_id)
            .where(follows.c.followed_id == user_id, _FOLLOWER.c.deleted_at.is_(None))
        )
        query = sa.select(
            capped_count(written), capped_count(supervise), users.c.created_at
        ).where(users.c.id == user_id, NOT_DELETED)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return Counted(*row) if row else None
