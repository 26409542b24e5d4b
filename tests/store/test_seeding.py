"""Members for load tests are consistent, complete or not."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from server.domain.clock import system_clock
from server.store.connections.connect import Database
from server.store.members.analytics import PostgresAnalytics
from server.store.retention import PostgresRetention
from server.store.seeding.members import MemberRows, SeedSizes
from server.store.seeding.seed import seed, sizes

SIZES = SeedSizes(250, sessions_per_user=3, posts_per_user=2, follows_per_user=4)
BATCH_SIZE = 100
# one row for each member whose rows are not all there
INCOMPLETE = """
    select id from users where
      (select count(*) from sessions where user_id = users.id) <> 3
      or (select count(*) from posts where user_id = users.id) <> 2
      or (select count(*) from follows where follower_id = users.id)
         <> least(4, users.id - 1)
"""
# one row for each time that is before its cause, or in the future
IMPOSSIBLE = """
    select 'user' from users where created_at > now()
    union all
    select 'session' from sessions join users on users.id = user_id
    where sessions.created_at < users.created_at or last_used_at < sessions.created_at
      or last_used_at > now() or expires_at < now()
    union all
    select 'post' from posts join users on users.id = user_id
    where posts.created_at not between users.created_at and now()
      or (state = 2) <> (published_at is not null)
    union all
    select 'follow' from follows join users on users.id in (follower_id, followed_id)
    where follows.created_at not between users.created_at and now()
    union all
    select 'open session of an inactive member'
    from sessions join users on users.id = user_id
    where not is_active and ended_at is null
"""


class Interrupted(Exception):
    """Ends a run after a batch."""


async def seeded(database: Database, *, batches: int = 3) -> None:
    reported = 0

    def report(_: int) -> None:
        nonlocal reported
        reported += 1
        if reported == batches < 3:
            raise Interrupted

    now = system_clock()
    rows = MemberRows(SIZES, "hash", now)
    await seed(database, rows, SIZES.users, now, report, BATCH_SIZE)


async def rows_of(database: Database, query: str) -> Sequence[Any]:
    async with database.reading() as connection:
        return (await connection.execute(sa.text(query))).all()


async def test_seeded_members_are_complete(database: Database) -> None:
    await seeded(database)
    counts = {name: count for name, count, _ in await sizes(database)}
    assert counts["users"] == counts["user_analytics"] == SIZES.users
    assert counts["sessions"] == 3 * SIZES.users
    assert not await rows_of(database, INCOMPLETE)


async def test_seeded_times_are_possible(database: Database) -> None:
    await seeded(database)
    assert not await rows_of(database, IMPOSSIBLE)


async def test_seeded_counts_are_those_of_a_recount(database: Database) -> None:
    query = (
        "select user_id, posts, followers, last_seen_at from user_analytics order by 1"
    )
    await seeded(database)
    before = await rows_of(database, query)
    async with database.transaction() as connection:
        await connection.execute(sa.text("update user_analytics set stale = true"))
    await PostgresAnalytics(database).count(SIZES.users, system_clock())
    assert await rows_of(database, query) == before


async def test_seeded_rows_are_kept_by_retention(database: Database) -> None:
    """Otherwise a service would begin to delete them while it is measured."""
    await seeded(database)
    before = await sizes(database)
    for _, delete in PostgresRetention(database, timedelta(days=1)).deletions(
        system_clock()
    ):
        await delete()
    assert [row[:2] for row in await sizes(database)] == [row[:2] for row in before]


async def test_interrupted_run_leaves_complete_members(database: Database) -> None:
    with pytest.raises(Interrupted):
        await seeded(database, batches=2)
    counts = {name: count for name, count, _ in await sizes(database)}
    assert (counts["users"], counts["user_analytics"]) == (2 * BATCH_SIZE, 0)
    assert not await rows_of(database, INCOMPLETE)


async def test_members_are_added_to_those_of_an_earlier_run(
    database: Database,
) -> None:
    await seeded(database)
    await seeded(database)
    counts = {name: count for name, count, _ in await sizes(database)}
    assert counts["users"] == counts["user_analytics"] == 2 * SIZES.users
    assert counts["categories"] == 10
