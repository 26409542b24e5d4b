"""A migration that waits for a lock delays nobody, however long it has to wait."""

import asyncio
import time

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from server.store import migrate
from server.store.connections.connect import Database
from tests.conftest import Servers
from tests.store.test_migrate import (
    ADD_POST,
    ADD_USER,
    differences,
    empty_database,
    until_blocked,
    value,
)

MAX_DELAY_SECONDS = 1.0
ATTEMPTS = 2
WAITING = "select count(*) from pg_locks where not granted"
CALLERS = (
    "select count(*) from users",
    "select count(*) from posts",
    "update users set is_active = true where id = 2",
    "delete from posts where id = 0",
)


async def call_until(
    stopping: asyncio.Event, database: Database, statement: str
) -> float:
    """Repeat a transaction of a client without timeouts; return the longest time."""
    longest = 0.0
    async with database.session() as client:
        while not stopping.is_set():
            started = time.monotonic()
            await client.execute(sa.text(statement))
            await client.commit()
            longest = max(longest, time.monotonic() - started)
    return longest


async def until_nobody_waits(database: Database) -> None:
    async with asyncio.timeout(10):
        while await value(database, WAITING):  # noqa: ASYNC110 - asked of Postgres
            await asyncio.sleep(0.01)


async def test_migration_behind_a_long_transaction_delays_nobody_for_a_second(
    servers: Servers, admin: AsyncEngine
) -> None:
    """Its ALTER TABLE gives up before those that wait behind it notice."""
    stopping = asyncio.Event()
    async with empty_database(servers, admin, "0011") as database:
        for name in ("a", "b"):
            await value(database, ADD_USER.replace("'a", f"'{name}"))
        async with asyncio.TaskGroup() as group, database.session() as long:
            await long.execute(sa.text("update users set version = 2 where id = 1"))
            await long.execute(sa.text(ADD_POST))
            callers = [
                group.create_task(call_until(stopping, database, statement))
                for statement in CALLERS
            ]
            migration = asyncio.create_task(migrate.upgrade(database))
            for _ in range(ATTEMPTS):
                await until_blocked(database)
                await until_nobody_waits(database)
            assert not migration.done()
            await long.commit()
            await migration
            stopping.set()
        assert max(caller.result() for caller in callers) < MAX_DELAY_SECONDS
        assert await differences(database) == []
