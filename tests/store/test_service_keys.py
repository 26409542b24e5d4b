"""Service keys: known to every process, stored hashed, their use recorded."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from server.domain.errors import StoreUnavailable
from server.store.connections.connect import Database
from server.store.credentials.service_keys import PostgresServiceKeys
from tests.fakes import NOON, Clock


async def test_service_keys_are_known_to_other_process_after_its_poll(
    database: Database,
) -> None:
    """A new key, a revoked key, and the time of the last use."""
    first, second = (PostgresServiceKeys(database, Clock()) for _ in range(2))
    key = await first.add("billing", b"digest", False, NOON, None)
    assert first.known(b"digest") == key
    assert second.known(b"digest") is None
    await second.refresh()
    assert second.known(b"digest") == key
    await second.refresh()
    (used_key,) = await first.all()
    assert used_key.last_used_at == NOON
    assert await second.revoke(key.id, NOON)
    assert not await second.revoke(key.id, NOON)
    assert second.known(b"digest") is None
    await first.refresh()
    assert first.known(b"digest") is None
    assert await first.all() == []


@contextmanager
def paused_read(database: Database) -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Stop the next query between its execution and its result, until `resumed`."""
    read, resumed = asyncio.Event(), asyncio.Event()

    def pause(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT") and not read.is_set():
            read.set()
            sa.util.await_only(resumed.wait())

    engine = database.engine.sync_engine
    sa.event.listen(engine, "after_cursor_execute", pause)
    yield read, resumed
    sa.event.remove(engine, "after_cursor_execute", pause)


async def test_service_keys_changed_during_poll_stay_changed(
    database: Database,
) -> None:
    """Rows read before a change in this process do not undo it."""
    keys = PostgresServiceKeys(database, Clock())
    old = await keys.add("old", b"old", False, NOON, None)
    with paused_read(database) as (read, resumed):
        poll = asyncio.create_task(keys.refresh())
        await read.wait()
        new = await keys.add("new", b"new", False, NOON, None)
        await keys.revoke(old.id, NOON)
        resumed.set()
        await poll
    assert keys.known(b"new") == new
    assert keys.known(b"old") is None


@contextmanager
def refused_updates(database: Database) -> Iterator[None]:
    """Fail every UPDATE before it is sent."""

    def refuse(
        _connection: object, _cursor: object, statement: str, *_: object
    ) -> None:
        if statement.startswith("UPDATE"):
            raise StoreUnavailable

    engine = database.engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", refuse)
    yield
    sa.event.remove(engine, "before_cursor_execute", refuse)


async def test_service_key_use_is_written_after_an_outage(database: Database) -> None:
    keys = PostgresServiceKeys(database, Clock())
    await keys.add("billing", b"digest", False, NOON, None)
    await keys.refresh()
    keys.known(b"digest")
    with refused_updates(database), pytest.raises(StoreUnavailable):
        await keys.refresh()
    await keys.refresh()
    (key,) = await keys.all()
    assert key.last_used_at == NOON
