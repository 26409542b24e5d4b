"""New versions of accounts are read once they are visible, and none is skipped."""

from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.outbox.entries import EventType, NewEntry
from server.store.accounts import new_versions
from server.store.accounts.new_versions import ERASED_VERSION, NewVersion, NewVersions
from server.store.change_records import record
from server.store.connections.connect import Database
from server.store.connections.signals import Signals
from tests.fakes import NOON

FOREVER_OPEN = 0  # no entry is settled


class Reader:
    """New versions after the entries that exist, with a settled id that a test sets."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.settled = FOREVER_OPEN
        self.versions = NewVersions(database, lambda: self.settled, 0)

    async def newest_id(self) -> int:
        async with self.database.reading() as connection:
            newest = sa.text("select coalesce(max(id), 0) from outbox")
            return int((await connection.execute(newest)).scalar_one())

    async def poll(self) -> tuple[list[NewVersion], bool]:
        signals = SimpleNamespace(newest_id=await self.newest_id())
        versions, complete = await self.versions.read(cast(Signals, signals))
        return list(versions), complete


async def write(connection: AsyncConnection, user_id: int, version: int) -> None:
    payload = {"version": version}
    event = NewEntry(EventType.USER_UPDATED, user_id, payload=payload)
    await record(connection, NOON, event)


@pytest.fixture
def reader(database: Database) -> Reader:
    return Reader(database)


async def test_new_versions_are_read_once(database: Database, reader: Reader) -> None:
    """Also of erased accounts; an account that was created is in no cache."""
    events = (
        NewEntry(EventType.USER_CREATED, 1, payload={"version": 1}),
        NewEntry(EventType.USER_DELETED, 2, payload={"version": 3}),
        NewEntry(EventType.WELCOME, 1),
        NewEntry(EventType.USER_ERASED, 3),
    )
    async with database.transaction() as connection:
        await record(connection, NOON, *events)
    assert await reader.poll() == ([(2, 3), (3, ERASED_VERSION)], True)
    assert await reader.poll() == ([], True)


async def test_new_versions_of_late_commits_are_read(
    database: Database, reader: Reader
) -> None:
    """Their ids are lower than others that were read before."""
    async with database.transaction() as late:
        await write(late, 1, 2)
        async with database.transaction() as other:
            await write(other, 2, 2)
        assert await reader.poll() == ([(2, 2)], True)
        assert await reader.poll() == ([], True)
    assert await reader.poll() == ([(1, 2)], True)
    assert await reader.poll() == ([], True)


async def test_missing_entry_is_read_by_the_poll_that_learns_that_it_is_settled(
    database: Database, reader: Reader
) -> None:
    """It committed after the poll before, and is settled since then."""
    async with database.transaction() as late:
        await write(late, 1, 2)
        async with database.transaction() as other:
            await write(other, 2, 2)
        await reader.poll()
    reader.settled = await reader.newest_id()
    assert await reader.poll() == ([(1, 2)], True)


async def test_entries_of_rollbacks_are_forgotten_once_settled(
    database: Database, reader: Reader
) -> None:
    with suppress(ZeroDivisionError):
        async with database.transaction() as connection:
            await write(connection, 1, 2)
            raise ZeroDivisionError
    async with database.transaction() as connection:
        await write(connection, 2, 2)
    await reader.poll()
    assert reader.versions._missing
    reader.settled = await reader.newest_id()
    await reader.poll()
    assert not reader.versions._missing


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_new_versions_are_read_in_batches(
    database: Database, reader: Reader, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    text = new_versions._ENTRIES.text.replace(
        f"limit {new_versions.BATCH_SIZE}", f"limit {size}"
    )
    monkeypatch.setattr(new_versions, "_ENTRIES", new_versions.Statement(text))
    monkeypatch.setattr(new_versions, "BATCH_SIZE", size)
    async with database.transaction() as connection:
        for user_id in range(1, 6):
            await write(connection, user_id, 2)
    assert await reader.poll() == ([(n, 2) for n in range(1, 6)], True)


async def test_too_many_missing_entries_are_awaited(
    database: Database, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is visible is read; the cache is not used until all of them are settled."""
    monkeypatch.setattr(new_versions, "MAX_MISSING", 3)
    skip: Any = sa.text("select nextval(pg_get_serial_sequence('outbox', 'id'))")
    async with database.transaction() as connection:
        for _ in range(10):
            await connection.execute(skip)
        await write(connection, 1, 2)
    assert await reader.poll() == ([(1, 2)], False)
    reader.settled = await reader.newest_id() - 1
    assert await reader.poll() == ([(1, 2)], True)
