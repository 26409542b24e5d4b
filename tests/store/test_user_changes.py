"""Changes of accounts are read in one order, whatever the order of commits.

Every test is run with both ways to know which changes are settled.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from server.domain.accounts.users import User
from server.domain.errors import StoreUnavailable
from server.domain.outbox.entries import EventType, NewEntry
from server.store.accounts.user_changes import MAX_BUFFERED, UserChangeFeed
from server.store.accounts.user_reads import UserReads
from server.store.accounts.users import PostgresUsers
from server.store.change_records import record
from server.store.connections.connect import Database
from tests.fakes import NOON
from tests.store.conftest import StoresUnderTest
from tests.store.test_users import change, new

# An epoch ends, and the one that was open when the entry was read, after two polls.
SETTLING_POLLS = 3
WRITERS, WRITES = 8, 15


@pytest_asyncio.fixture(params=["transaction ids", "write epochs"])
async def database(
    request: pytest.FixtureRequest, database_url: str
) -> AsyncIterator[Database]:
    database = Database(database_url, write_epochs=request.param == "write epochs")
    yield database
    await database.close()


@pytest_asyncio.fixture
async def feed(database: Database) -> UserChangeFeed:
    feed = UserChangeFeed(database, UserReads(database))
    await poll(feed)
    return feed


async def poll(feed: UserChangeFeed) -> None:
    for _ in range(SETTLING_POLLS):
        await feed.refresh()


async def changes(feed: UserChangeFeed, after: int = 0) -> list[tuple[EventType, int]]:
    await poll(feed)
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
    with suppress(ZeroDivisionError):
        async with database.transaction() as connection:
            await record(connection, NOON, NewEntry(EventType.USER_UPDATED, 77))
            ana = await real_stores.users.add(new("ana"))
            assert await changes(feed) == []
            raise ZeroDivisionError
    assert await changes(feed) == [(EventType.USER_CREATED, ana.id)]


async def test_user_changes_of_one_account_keep_their_order(
    database: Database, real_stores: StoresUnderTest, feed: UserChangeFeed
) -> None:
    """Even if the later change has the older transaction and a third one is open."""
    ana = await real_stores.users.add(new("ana"))
    await poll(feed)
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
    await poll(feed)
    late = UserChangeFeed(database, UserReads(database))
    await poll(late)
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


async def test_user_changes_do_not_wait_for_killed_writer(
    database: Database, real_stores: StoresUnderTest, feed: UserChangeFeed
) -> None:
    """Postgres ends its session: no lease has to expire, whatever the clocks say."""
    killed = sa.text("select pg_terminate_backend(:pid)")
    with suppress(StoreUnavailable, sa.exc.DBAPIError):
        async with database.transaction() as connection:
            await record(connection, NOON, NewEntry(EventType.USER_UPDATED, 77))
            ana = await real_stores.users.add(new("ana"))
            pid = (
                await connection.execute(sa.text("select pg_backend_pid()"))
            ).scalar()
            assert await changes(feed) == []
            async with database.reading() as other:
                await other.execute(killed, {"pid": pid})
            await connection.execute(sa.text("select 1"))
    assert await changes(feed) == [(EventType.USER_CREATED, ana.id)]


async def test_user_changes_are_read_once_and_in_order_under_load(
    database: Database, feed: UserChangeFeed
) -> None:
    """Writers commit out of order, or roll back; readers poll all the time."""
    committed: list[int] = []

    async def write(writer: int) -> None:
        for number in range(WRITES):
            event = NewEntry(EventType.USER_UPDATED, writer * 1_000 + number)
            with suppress(ZeroDivisionError):
                async with database.transaction() as connection:
                    await record(connection, NOON, event)
                    await asyncio.sleep(random.choice([0, 0, 0.002, 0.02]))
                    1 / random.choice([0, 1, 1, 1])
                committed.append(event.user_id or 0)

    async def read(reader: UserChangeFeed, writing: "asyncio.Future[Any]") -> list[Any]:
        seen: list[Any] = []
        while not writing.done():
            await reader.refresh()
            seen += await reader.chunk(seen[-1].id if seen else 0, 1_000)
        await poll(reader)
        return seen + list(await reader.chunk(seen[-1].id if seen else 0, 1_000))

    other = UserChangeFeed(database, UserReads(database))
    await poll(other)
    writing = asyncio.gather(*(write(number) for number in range(WRITERS)))
    for seen in await asyncio.gather(read(feed, writing), read(other, writing)):
        ids = [change.id for change in seen]
        assert ids == sorted(set(ids))
        assert {change.user_id for change in seen} == set(committed)
