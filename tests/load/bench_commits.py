"""Commits per second of 16 writers: with triggers that NOTIFY, against without.

The stores of the service write to two databases of one server. One has the triggers of
earlier releases, and a process that listens; in the other, wake-ups go over Redis.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy as sa

from server.domain.accounts.users import NewUser, Role, UserEdit
from server.domain.clock import system_clock
from server.domain.credentials.revocations import Revocations
from server.embedded.servers import EmbeddedServers
from server.store.accounts.users import PostgresUsers
from server.store.connections.connect import Database
from server.store.credentials.revocations import RevocationFeed
from server.store.migrate import upgrade
from server.store.redis.redis_client import redis_client
from tests.load.row import ResultRow

WRITERS = 16
ROUNDS = 9
SECONDS = 1.5  # of each call in each half round
WITH_TRIGGERS = "0021"
CHANNELS = ("users", "outbox")
_numbers = count()


@dataclass(frozen=True, slots=True)
class Schema:
    """The stores of one database, and an account for each writer."""

    users: PostgresUsers
    ids: list[int]

    async def update(self, writer: int) -> None:
        """Rename the writer's account, as UpdateUser does."""
        values = {"username": f"w{writer}n{next(_numbers)}"}
        edit = UserEdit(values, "", system_clock())
        await self.users.edit(self.ids[writer], edit)

    async def create(self, _writer: int) -> None:
        """Create an account, as CreateUser does."""
        name = f"new{next(_numbers)}"
        now = system_clock()
        await self.users.add(
            NewUser(f"{name}@example.com", name, "hash", Role.STUDENT, now)
        )


Call = Callable[[Schema, int], Awaitable[None]]
CALLS: dict[str, Call] = {"UpdateUser": Schema.update, "CreateUser": Schema.create}


def rows() -> list[ResultRow]:
    """Return the ratio of the rates for each call."""
    with TemporaryDirectory(prefix="blatam-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres runs under another account
        servers = EmbeddedServers(folder)
        try:
            urls = servers.start_postgres(), servers.start_valkey()
            return asyncio.run(_measured(*urls))
        finally:
            servers.stop()


async def _measured(database_url: str, redis_url: str) -> list[ResultRow]:
    first = Database(database_url)
    async with first.alone() as connection:
        await connection.execute(sa.text("create database notifying"))
    await first.close()
    other_url = sa.make_url(database_url).set(database="notifying")
    notifying_url = other_url.render_as_string(hide_password=False)
    async with (
        _schema(notifying_url, redis_url, WITH_TRIGGERS) as notifying,
        _schema(database_url, redis_url, "head") as present,
    ):
        return [
            await _row(name, call, notifying, present) for name, call in CALLS.items()
        ]


@asynccontextmanager
async def _schema(
    database_url: str, redis_url: str, revision: str
) -> AsyncIterator[Schema]:
    database = Database(database_url, pool_size=WRITERS)
    await upgrade(database, revision)
    redis = redis_client(redis_url)
    feed = RevocationFeed(database, redis, Revocations(system_clock), system_clock)
    schema = Schema(PostgresUsers(database, feed), [])
    if revision != WITH_TRIGGERS:
        database.announce = feed.wakeups.publish
    async with database.alone() as listener:
        if revision == WITH_TRIGGERS:
            await _listen(listener)
        for writer in range(WRITERS):
            new = NewUser(
                f"{writer}@x.co", f"w{writer}", "", Role.STUDENT, system_clock()
            )
            schema.ids.append((await schema.users.add(new)).id)
        yield schema
    await redis.aclose()
    await database.close()


async def _listen(connection: Any) -> None:
    raw = await connection.get_raw_connection()
    for channel in CHANNELS:
        await raw.driver_connection.add_listener(channel, lambda *_: None)


async def _row(name: str, call: Call, old: Schema, new: Schema) -> ResultRow:
    for schema in (old, new):
        await _rate(schema, call)  # warm up
    rates: list[tuple[float, float]] = []
    for number in range(ROUNDS):
        if number % 2:
            after, before = await _rate(new, call), await _rate(old, call)
        else:
            before, after = await _rate(old, call), await _rate(new, call)
        rates.append((before, after))
    before, after = (statistics.median(column) for column in zip(*rates, strict=True))
    return ResultRow(
        f"{name}: commits without / with triggers and NOTIFY",
        statistics.median(after / before for before, after in rates),
        1.0,
        notes=f"{after:,.0f} / {before:,.0f} a second, {WRITERS} writers, "
        f"{ROUNDS} rounds of {SECONDS} s",
    )


async def _rate(schema: Schema, call: Call) -> float:
    """Return the calls per second of all writers together."""
    calls = 0
    started = time.perf_counter()

    async def write(writer: int) -> None:
        nonlocal calls
        while time.perf_counter() - started < SECONDS:
            await call(schema, writer)
            calls += 1

    await asyncio.gather(*map(write, range(WRITERS)))
    return calls / (time.perf_counter() - started)
