"""The pool: lost connections, deadlines, cancellation and a silent Postgres."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from server.domain.errors import StoreUnavailable
from server.store.connections.connect import PING_TIMEOUT_SECONDS, Database
from server.store.pool import finishing
from server.store.pool.direct import PROBE_TIMEOUT_SECONDS
from server.store.pool.slots import PoolStatistics
from server.store.pool.statement import Statement
from tests.conftest import Servers, run, url_of
from tests.silent_proxy import silent_proxy

POOL_SIZE = 3
CANCELLED_CALLS = 2_000
DEADLINE_SECONDS = 0.1
SECONDS = 10
LONG_STATEMENT = sa.text("select pg_sleep(5)")
TERMINATE_OTHERS = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where datname = '{}' and pid <> pg_backend_pid()"
)


@pytest_asyncio.fixture
async def pool(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, pool_size=POOL_SIZE)
    yield database
    await database.close()


async def read(database: Database, number: int = 1) -> int:
    async with database.reading() as connection:
        result = await connection.execute(sa.select(sa.literal(number)))
        value: int = result.scalar_one()
        return value


async def write(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(sa.text("create temporary table t (id int)"))
        await connection.execute(sa.text("drop table t"))


async def fill(database: Database, calls: int = POOL_SIZE) -> None:
    """Open connections by calls that need one each at the same time."""
    barrier = asyncio.Barrier(calls)

    async def hold() -> None:
        async with database.reading() as connection:
            await connection.execute(sa.select(1))
            await barrier.wait()

    await asyncio.gather(*(hold() for _ in range(calls)))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await condition():  # noqa: ASYNC110 - asked of Postgres
            await asyncio.sleep(0.01)


def name_of(url: str) -> str:
    return str(sa.make_url(url).database)


async def active(admin: AsyncEngine, url: str) -> int:
    """Return how many other connections of a database run a statement."""
    async with admin.connect() as connection:
        query = sa.text(
            "select count(*) from pg_stat_activity where datname = :name"
            " and state <> 'idle' and pid <> pg_backend_pid()"
        )
        return int(
            (await connection.execute(query, {"name": name_of(url)})).scalar_one()
        )


@pytest.mark.parametrize("use", [read, write])
async def test_terminated_idle_connections_fail_no_call(
    pool: Database,
    admin: AsyncEngine,
    database_url: str,
    use: Callable[[Database], Awaitable[object]],
) -> None:
    """L6: neither reads nor writes notice that their connections were closed."""
    for _ in range(3):
        await fill(pool)
        await run(admin, TERMINATE_OTHERS.format(name_of(database_url)))
        await asyncio.gather(*(use(pool) for _ in range(POOL_SIZE * 2)))
    assert not pool.is_degraded


async def test_read_is_repeated_when_its_connection_is_lost(
    pool: Database, admin: AsyncEngine, database_url: str
) -> None:
    """The loss shows while the statement is executed; writes are not repeated."""

    async def lose_during(statement: str) -> object:
        async with pool.reading() as connection:
            query = asyncio.create_task(connection.execute(sa.text(statement)))
            await until(lambda: is_active(admin, database_url))
            await run(admin, TERMINATE_OTHERS.format(name_of(database_url)))
            return (await query).scalar_one()

    assert await lose_during("select 'read' from pg_sleep(0.3)") == "read"
    await run_in(pool, "create table t (id int)")
    with pytest.raises(StoreUnavailable):
        await lose_during("insert into t select 1 from pg_sleep(0.3) returning id")
    assert await count(pool, "t") == 0
    assert not pool.is_degraded


async def is_active(admin: AsyncEngine, url: str) -> bool:
    return await active(admin, url) > 0


async def run_in(database: Database, statement: str) -> None:
    async with database.reading() as connection:
        await connection.execute(sa.text(statement))


async def count(database: Database, table: str) -> int:
    async with database.reading() as connection:
        query = sa.text(f"select count(*) from {table}")
        return int((await connection.execute(query)).scalar_one())


async def test_transaction_begins_on_another_connection_when_one_is_lost(
    pool: Database,
) -> None:
    """Nothing was executed before BEGIN, so that it can be repeated."""
    begun: list[object] = []

    def fail_once(dbapi_connection: object, *_: object) -> None:
        begun.append(dbapi_connection)
        if len(begun) == 1:
            dbapi_connection.driver_connection._transport.abort()  # type: ignore[attr-defined]

    sa.event.listen(pool.engine.sync_engine, "checkout", fail_once)
    await write(pool)
    assert len(begun) == 2
    assert begun[0] is not begun[1]


async def test_call_waits_for_a_connection_until_its_deadline(
    database_url: str,
) -> None:
    """Not until the timeout of the pool; the queue keeps no trace of it."""
    pool = Database(
        database_url, pool_size=1, pool_timeout=timedelta(seconds=10 * SECONDS)
    )
    async with pool.reading():
        async with asyncio.timeout(SECONDS):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await read(pool)
        waiting = asyncio.create_task(read(pool))
        await asyncio.sleep(0)
        assert pool.statistics == PoolStatistics(1, 0, 1, 0)
    assert await waiting == 1
    assert pool.statistics == PoolStatistics(0, 1, 0, 0)
    await pool.close()


async def test_exhausted_pool_refuses_after_its_timeout(database_url: str) -> None:
    """L9: the refusals are counted."""
    pool = Database(database_url, pool_size=1, pool_timeout=timedelta(seconds=0.01))
    async with pool.reading():
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await read(pool)
        await pool.ping()  # Postgres answers all the same
    assert pool.statistics == PoolStatistics(0, 1, 0, 2)
    assert not pool.is_degraded
    await pool.close()


async def test_statement_is_cancelled_in_postgres_at_the_deadline(
    pool: Database, admin: AsyncEngine, database_url: str
) -> None:
    """L10: Postgres stops working soon after the caller has stopped waiting."""
    loop = asyncio.get_running_loop()
    for block in (pool.reading, pool.transaction):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(DEADLINE_SECONDS), block() as connection:
                await connection.execute(LONG_STATEMENT)
        started_at = loop.time()
        await until(lambda: is_idle(admin, database_url))
        assert loop.time() - started_at < 2  # far less than the statement takes
    assert await read(pool) == 1


async def is_busy(admin: AsyncEngine, url: str) -> bool:
    return await active(admin, url) > 0


async def all_run(admin: AsyncEngine, url: str) -> bool:
    return await active(admin, url) == POOL_SIZE


async def is_idle(admin: AsyncEngine, url: str) -> bool:
    return await active(admin, url) == 0


async def test_cancelled_calls_leak_no_connection_and_mix_no_results(
    database_url: str, admin: AsyncEngine
) -> None:
    """L11: each caller gets its own number, whenever the others are cancelled."""
    pool = Database(
        database_url, pool_size=POOL_SIZE, pool_timeout=timedelta(seconds=SECONDS)
    )
    numbers = random.Random(1)

    async def call(number: int) -> bool:
        task = asyncio.create_task(read(pool, number))
        if number % 2:
            await asyncio.sleep(numbers.uniform(0, 0.002))
            task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        return result == number or isinstance(result, asyncio.CancelledError)

    for start in range(0, CANCELLED_CALLS, 100):
        calls = (call(number) for number in range(start, start + 100))
        assert all(await asyncio.gather(*calls))
    statistics = pool.statistics
    assert (statistics.in_use, statistics.waiting) == (0, 0)
    await fill(pool)
    await pool.close()
    await until(lambda: has_no_connection(admin, database_url))


async def test_connections_survive_cancelled_calls(
    pool: Database,
    admin: AsyncEngine,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that cancels its calls does not make Postgres open connections."""
    monkeypatch.setattr(finishing, "FINISH_SECONDS", SECONDS)  # on a busy machine
    await fill(pool)
    before = await backends(admin, database_url)
    sleeping = Statement("select cast(pg_sleep(0.2) as text)")

    async def execute(block: Callable[[], Any]) -> None:
        async with block() as connection:
            await connection.execute(sleeping.clause)

    calls = (
        execute(pool.reading),
        execute(pool.transaction),
        pool.run(sleeping),
    )
    for call in calls:
        task = asyncio.ensure_future(call)
        await until(lambda: is_busy(admin, database_url))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: is_idle(admin, database_url))
    await fill(pool)
    assert await backends(admin, database_url) == before


async def test_cancelled_transaction_is_rolled_back(
    pool: Database,
    admin: AsyncEngine,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A statement that finishes after its caller has left is not committed."""
    monkeypatch.setattr(finishing, "FINISH_SECONDS", SECONDS)  # on a busy machine
    async with pool.transaction() as connection:
        await connection.execute(sa.text("create table left_behind (id int)"))
    insert = "with slow as (select pg_sleep(0.2)) insert into left_behind select 1"

    async def write() -> None:
        async with pool.transaction() as connection:
            await connection.execute(sa.text(f"{insert} from slow"))

    task = asyncio.create_task(write())
    await until(lambda: is_busy(admin, database_url))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: is_idle(admin, database_url))
    await fill(pool)
    async with pool.reading() as connection:
        rows = await connection.execute(sa.text("select * from left_behind"))
        assert rows.all() == []


async def test_close_interrupts_what_runs(
    admin: AsyncEngine, database_url: str
) -> None:
    """Also a caller that waits for a connection; none is left behind."""
    database = Database(database_url, pool_size=POOL_SIZE)

    async def execute(block: Callable[[], Any]) -> None:
        async with block() as connection:
            await connection.execute(LONG_STATEMENT)

    running = [
        asyncio.create_task(execute(database.reading)),
        asyncio.create_task(execute(database.transaction)),
        asyncio.create_task(execute_alone(database)),
    ]
    await until(lambda: all_run(admin, database_url))
    waiting = asyncio.create_task(read(database))
    await asyncio.sleep(0)
    assert database.statistics.waiting == 1
    await database.close()
    assert all(task.done() for task in running)
    for call in (*running, waiting, read(database), write(database)):
        with pytest.raises(StoreUnavailable):
            await call
    await until(lambda: has_no_connection(admin, database_url))


async def execute_alone(database: Database) -> None:
    await database.run(Statement("select pg_sleep(5)"))


async def backends(admin: AsyncEngine, url: str) -> set[int]:
    """Return the process ids of the connections to a database."""
    async with admin.connect() as connection:
        query = sa.text("select pid from pg_stat_activity where datname = :name")
        return set((await connection.execute(query, {"name": name_of(url)})).scalars())


async def has_no_connection(admin: AsyncEngine, url: str) -> bool:
    async with admin.connect() as connection:
        query = sa.text("select count(*) from pg_stat_activity where datname = :name")
        result = await connection.execute(query, {"name": name_of(url)})
        return bool(result.scalar_one() == 0)


async def test_cancelled_call_ends_at_once_while_postgres_is_silent(
    database_url: str,
) -> None:
    """The caller does not wait until Postgres confirms the end of the connection."""
    async with silent_proxy(database_url) as proxy:
        database = Database(proxy.url)
        await database.ping()
        proxy.silent = True
        loop = asyncio.get_running_loop()
        for block in (database.reading, database.transaction):
            started_at = loop.time()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(DEADLINE_SECONDS), block() as connection:
                    await connection.execute(sa.select(1))
            assert loop.time() - started_at < 1  # asyncpg waits for two seconds
        proxy.silent = False
        await database.close()


async def test_silence_is_noticed_while_a_statement_waits(database_url: str) -> None:
    """A slow statement is not silence; one that nothing answers is."""
    async with silent_proxy(database_url) as proxy:
        database = Database(proxy.url)
        async with database.reading() as connection:
            await connection.execute(sa.text("select pg_sleep(1)"))
        assert not database.is_degraded
        proxy.silent = True
        calls = (run_in(database, "select pg_sleep(0)") for _ in range(20))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        assert database.is_degraded
        assert database.statistics.in_use == 0
        with pytest.raises(StoreUnavailable):
            await database.ping()
        proxy.silent = False
        await until(lambda: is_available(database))
        assert await read(database) == 1
        await database.close()


async def is_available(database: Database) -> bool:
    return not database.is_degraded


async def test_read_only_connections_are_replaced(
    servers: Servers, admin: AsyncEngine, database_url: str
) -> None:
    """L6: reads go on, writes are refused, and succeed again soon after the failover.

    The settings of a database apply to new connections only, as those of another
    primary do: the old connections never become writable.
    """
    name = name_of(database_url)
    url = f"{url_of(servers, name)}&target_session_attrs=read-write"
    pool = Database(url, pool_size=POOL_SIZE)
    try:
        await write(pool)
        await run(
            admin, f"alter database {name} set default_transaction_read_only = on"
        )
        await run(admin, TERMINATE_OTHERS.format(name))
        for _ in range(5):
            await asyncio.gather(*(read(pool) for _ in range(POOL_SIZE)))
            with pytest.raises(StoreUnavailable):
                await run_in(pool, "create table t (id int)")
        assert pool.is_degraded
        await run(admin, f"alter database {name} reset default_transaction_read_only")
        async with asyncio.timeout(SECONDS):
            while True:
                assert await read(pool) == 1
                try:
                    await run_in(pool, "create table t (id int)")
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.02)
        await write(pool)
        assert not pool.is_degraded
    finally:
        await pool.close()


@pytest.mark.parametrize(
    ("check", "limit"),
    [
        (Database.ping, PING_TIMEOUT_SECONDS),
        (lambda pool: pool._probe(), PROBE_TIMEOUT_SECONDS),
    ],
    ids=["health-check", "probe"],
)
async def test_pause_of_this_process_is_not_a_silence(
    pool: Database, check: Callable[[Database], Awaitable[None]], limit: float
) -> None:
    """Its timers have expired before the answers are read, time after time."""
    checking = asyncio.ensure_future(check(pool))
    while not checking.done():
        await asyncio.sleep(0)
        time.sleep(limit / 8)  # noqa: ASYNC251
    await checking
    assert not pool.is_degraded


async def test_refused_connections_are_a_degradation(
    servers: Servers, admin: AsyncEngine, database_url: str
) -> None:
    """Postgres answers, but lets nobody in: the circuit breaker stays closed."""
    name = name_of(database_url)
    pool = Database(database_url, pool_size=POOL_SIZE)
    try:
        await read(pool)
        await run(admin, f"alter database {name} with allow_connections false")
        await run(admin, TERMINATE_OTHERS.format(name))
        with pytest.raises(StoreUnavailable):
            await read(pool)
        assert pool.is_degraded
        await run(admin, f"alter database {name} with allow_connections true")
        assert await read(pool) == 1
        assert not pool.is_degraded
    finally:
        await pool.close()
