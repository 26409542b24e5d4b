"""Service keys: known to every process, stored hashed, their use recorded."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from server.store.connections.connect import Database
from server.store.credentials.service_keys import PostgresServiceKeys
from tests.fakes import NOON, Clock


async def test_service_keys_are_known_to_other_process_after_its_poll(
    database: Database,
) -> None:
    """A new key, a revoked key, and the time of the last use."""
    one, other = (PostgresServiceKeys(database, Clock()) for _ in range(2))
    key = await one.add("billing", b"digest", False, NOON, None)
    assert one.known(b"digest") == key
    assert other.known(b"digest") is None
    await other.refresh()
    assert other.known(b"digest") == key
    await other.refresh()
    (used,) = await one.all()
    assert used.last_used_at == NOON
    assert await other.revoke(key.id, NOON)
    assert not await other.revoke(key.id, NOON)
    assert other.known(b"digest") is None
    await one.refresh()
    assert one.known(b"digest") is None
    assert await one.all() == []


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
