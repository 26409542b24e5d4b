"""Changes of accounts are read in one order, whatever the order of commits."""

from typing import Any

import pytest_asyncio
import sqlalchemy as sa

from server.domain.accounts.users import User
from server.domain.outbox.entries import EventType, NewEntry
from server.store.accounts.user_changes import MAX_BUFFERED, UserChangeFeed
from server.store.accounts.user_reads import UserReads
from server.store.accounts.users import PostgresUsers
from server.store.change_records import record
from server.store.connections.connect import Database
from tests.fakes import NOON
from tests.store.conftest import StoresUnderTest
from tests.store.test_users import change, new


@pytest_asyncio.fixture
async def feed(database: Database) -> UserChangeFeed:
    feed = UserChangeFeed(database, UserReads(database))
    await feed.refresh()
    return feed


async def changes(feed: UserChangeFeed, after: int = 0) -> list[tuple[EventType, int]]:
    await feed.refresh()
    chunk = await feed.chunk(after, 100)
    return [(change.kind, change.user_id) for change in chunk]


async def test_user_changes_are_read_in_order(
    real_stores: StoresUnderTest, feed: UserChangeFeed
) -> None:
    users = real_stores.users
    ana, bea = await users.add(new("ana")), await users.add(new("bea"))
    await users.edit(ana.id, change(username="anna"))
    await users.delete(bea.id, NOON)
    assert await changes(feed) == [
        (EventType.USER_CREATED, ana.id),
        (EventType.USER_CREATED, bea.id),
        (EventType.USER_UPDATED, ana.id),
        (EventType.USER_DELETED, bea.id),
    ]
    first, second, *_ = await feed.chunk(0, 100)
    assert isinstance(first.user, User)
    assert (first.user.username, second.user) == ("anna", None)
    assert await changes(feed, after=second.id) == [
        (EventType.USER_UPDATED, ana.id),
        (EventType.USER_DELETED, bea.id),
    ]


async def test_user_changes_wait_for_late_commit(
    database: Database, real_stores: StoresUnderTest, feed: UserChangeFeed
) -> None:
    """Its entry has the lower id: later entries are not returned before it ends."""
    users = real_stores.users
    async with database.transaction() as late:
        await late.execute(sa.select(sa.func.pg_current_xact_id()))
        await record(late, NOON, NewEntry(EventType.USER_UPDATED, 77))
        ana = await users.add(new("ana"))
        assert await changes(feed) == []
        settled = feed.settled
    assert await changes(feed, settled or 0) == [
        (EventType.USER_UPDATED, 77),
        (EventType.USER_CREATED, ana.id),
    ]


async def test_user_changes_do_not_wait_after_rollback(
    database: Database, real_stores: StoresUnderTest, feed: UserChangeFeed
) -> None:
    connection = await database.engine.connect()
    await connection.begin()
    await record(connection, NOON, NewEntry(EventType.USER_UPDATED, 77))
    ana = await real_stores.users.add(new("ana"))
    assert await changes(feed) == []
    await connection.rollback()
    await connection.close()
    assert await changes(feed) == [(EventType.USER_CREATED, ana.id)]


async def test_user_changes_of_one_account_keep_their_order(
    database: Database, real_stores: StoresUnderTest, feed: UserChangeFeed
) -> None:
    """Even if the later change has the older transaction and a third one is open."""
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
            await record(older, NOON, NewEntry(EventType.USER_DELETED, ana.id))
        early = await changes(feed, before)
    assert early in (
        [],
        [(EventType.USER_UPDATED, ana.id), (EventType.USER_DELETED, ana.id)],
    )
    assert await changes(feed, before) == [
        (EventType.USER_UPDATED, ana.id),
        (EventType.USER_DELETED, ana.id),
    ]


async def test_user_changes_outside_buffer_are_read_from_postgres(
    database: Database, real_stores: StoresUnderTest, feed: UserChangeFeed
) -> None:
    """More at once than the buffer holds, and older than this process."""
    assert isinstance(real_stores.users, PostgresUsers)
    entries = [NewEntry(EventType.USER_UPDATED, n + 1) for n in range(MAX_BUFFERED + 5)]
    async with database.transaction() as connection:
        await record(connection, NOON, *entries)
    await feed.refresh()
    late = UserChangeFeed(database, UserReads(database))
    await late.refresh()
    for reader in (feed, late):
        seen: list[Any] = []
        while chunk := await reader.chunk(seen[-1].id if seen else 0, 300):
            seen += chunk
        assert [change.user_id for change in seen] == [e.user_id for e in entries]
    again = NewEntry(EventType.USER_UPDATED, 7)
    async with database.transaction() as connection:
        await record(connection, NOON, again)
    assert await changes(feed, seen[-1].id) == [(EventType.USER_UPDATED, 7)]
    assert len(await feed.chunk(seen[-3].id, 10)) == 3
