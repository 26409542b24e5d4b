"""Changes of accounts in one order, while transactions commit in another."""

from typing import Any

import pytest_asyncio
import sqlalchemy as sa

from server.domain.accounts.users import User
from server.domain.outbox.entries import EventType, NewEntry
from server.store.accounts.user_changes import MOST_AHEAD, UserChangeFeed
from server.store.accounts.user_reads import UserReads
from server.store.accounts.users import PostgresUsers
from server.store.connect import Database
from server.store.outbox import enqueue
from tests.fakes import NOON
from tests.store.conftest import Stores
from tests.store.test_users import change, new


@pytest_asyncio.fixture
async def feed(database: Database) -> UserChangeFeed:
    feed = UserChangeFeed(database, UserReads(database))
    await feed.refresh()
    return feed


async def told(feed: UserChangeFeed, after: int = 0) -> list[tuple[EventType, int]]:
    await feed.refresh()
    found = await feed.chunk(after, 100)
    return [(found.kind, found.user_id) for found in found]


async def test_every_change_is_told_in_order(
    real_stores: Stores, feed: UserChangeFeed
) -> None:
    users = real_stores.users
    ana, bea = await users.add(new("ana")), await users.add(new("bea"))
    await users.edit(ana.id, change(username="anna"))
    await users.delete(bea.id, NOON)
    assert await told(feed) == [
        (EventType.USER_CREATED, ana.id),
        (EventType.USER_CREATED, bea.id),
        (EventType.USER_UPDATED, ana.id),
        (EventType.USER_DELETED, bea.id),
    ]
    first, second, *_ = await feed.chunk(0, 100)
    assert isinstance(first.user, User)
    assert (first.user.username, second.user) == ("anna", None)
    assert await told(feed, after=second.id) == [
        (EventType.USER_UPDATED, ana.id),
        (EventType.USER_DELETED, bea.id),
    ]


async def test_one_that_commits_late_is_waited_for(
    database: Database, real_stores: Stores, feed: UserChangeFeed
) -> None:
    """Its entry has the lower id: what came after it is held back until it ends."""
    users = real_stores.users
    async with database.transaction() as late:
        await late.execute(sa.select(sa.func.pg_current_xact_id()))
        await enqueue(late, NOON, NewEntry(EventType.USER_UPDATED, 77))
        ana = await users.add(new("ana"))
        assert await told(feed) == []
        settled = feed.settled
    assert await told(feed, settled or 0) == [
        (EventType.USER_UPDATED, 77),
        (EventType.USER_CREATED, ana.id),
    ]


async def test_one_that_is_undone_holds_nothing_back(
    database: Database, real_stores: Stores, feed: UserChangeFeed
) -> None:
    connection = await database.engine.connect()
    await connection.begin()
    await enqueue(connection, NOON, NewEntry(EventType.USER_UPDATED, 77))
    ana = await real_stores.users.add(new("ana"))
    assert await told(feed) == []
    await connection.rollback()
    await connection.close()
    assert await told(feed) == [(EventType.USER_CREATED, ana.id)]


async def test_those_of_one_account_keep_their_order(
    database: Database, real_stores: Stores, feed: UserChangeFeed
) -> None:
    """Though the later change has the older transaction, and a third stays open."""
    ana = await real_stores.users.add(new("ana"))
    await feed.refresh()
    before = feed.settled or 0
    lock = sa.text("select 1 from users where id = :id for update")
    async with database.transaction() as open_one:
        async with database.transaction() as older:
            await older.execute(sa.select(sa.func.pg_current_xact_id()))
            await open_one.execute(sa.select(sa.func.pg_current_xact_id()))
            await real_stores.users.edit(ana.id, change(username="anna"))
            await older.execute(lock, {"id": ana.id})
            await enqueue(older, NOON, NewEntry(EventType.USER_DELETED, ana.id))
        early = await told(feed, before)
    assert early in (
        [],
        [(EventType.USER_UPDATED, ana.id), (EventType.USER_DELETED, ana.id)],
    )
    assert await told(feed, before) == [
        (EventType.USER_UPDATED, ana.id),
        (EventType.USER_DELETED, ana.id),
    ]


async def test_what_is_not_at_hand_is_read(
    database: Database, real_stores: Stores, feed: UserChangeFeed
) -> None:
    """More at once than are held, and what was before this process began."""
    assert isinstance(real_stores.users, PostgresUsers)
    entries = [NewEntry(EventType.USER_UPDATED, n + 1) for n in range(MOST_AHEAD + 5)]
    async with database.transaction() as connection:
        await enqueue(connection, NOON, *entries)
    await feed.refresh()
    late = UserChangeFeed(database, UserReads(database))
    await late.refresh()
    for one in (feed, late):
        seen: list[Any] = []
        while chunk := await one.chunk(seen[-1].id if seen else 0, 300):
            seen += chunk
        assert [found.user_id for found in seen] == [e.user_id for e in entries]
    again = NewEntry(EventType.USER_UPDATED, 7)
    async with database.transaction() as connection:
        await enqueue(connection, NOON, again)
    assert await told(feed, seen[-1].id) == [(EventType.USER_UPDATED, 7)]
    assert len(await feed.chunk(seen[-3].id, 10)) == 3
