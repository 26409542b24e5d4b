"""Accounts close at hand are never older than what Postgres has told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis

from server.domain.accounts.users import NewUser, Role, User, UserEdit
from server.domain.credentials.revocations import Revocations
from server.store.accounts.erasure import erase
from server.store.accounts.user_cache import CachedUsers
from server.store.connect import Database, redis_client
from server.store.credentials.revocations import RevocationFeed
from server.workers.supervisor import supervise
from tests.fakes import NOON, Clock

TEACHER = UserEdit({"role": Role.TEACHER}, "", NOON)


def cached(database: Database, redis: Redis) -> CachedUsers:
    clock = Clock()
    feed = RevocationFeed(database, redis, Revocations(clock), clock)
    return CachedUsers(database, redis, feed)


@asynccontextmanager
async def process(database: Database, redis: Redis) -> AsyncIterator[CachedUsers]:
    """Give a process's view, once Postgres tells it changes."""
    users = cached(database, redis)
    async with supervise(users.cache.run):
        await until(lambda: users.cache._told)
        yield users


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.005)


async def added(users: CachedUsers) -> User:
    return await users.add(NewUser("a@x.co", "ana", "h", Role.STUDENT, NOON))


@pytest.fixture
def statements(database: Database) -> list[str]:
    """Give what Postgres is asked from here on, but for signs of life."""
    seen: list[str] = []
    sa.event.listen(
        database.engine.sync_engine,
        "before_cursor_execute",
        lambda _c, _k, statement, *_: seen.append(statement),
    )
    return seen


async def test_a_second_read_asks_nobody(
    database: Database, redis_url: str, statements: list[str]
) -> None:
    redis = redis_client(redis_url)
    async with process(database, redis) as users:
        user = await added(users)
        statements.clear()
        assert [await users.by_id(user.id) for _ in range(3)] == [user] * 3
        assert len(statements) == 1
    await redis.aclose()


async def test_another_process_reads_from_redis(
    database: Database, redis_url: str, statements: list[str]
) -> None:
    redis = redis_client(redis_url)
    async with process(database, redis) as one, process(database, redis) as other:
        user = await added(one)
        await one.by_id(user.id)
        statements.clear()
        assert await other.by_id(user.id) == user
        assert statements == []
    await redis.aclose()


async def test_an_erased_user_is_in_no_cache(
    database: Database, redis_url: str
) -> None:
    """Every process drops what it holds; in Redis a mark takes the account's place."""
    redis = redis_client(redis_url)
    async with process(database, redis) as one, process(database, redis) as other:
        user = await added(one)
        assert await one.by_id(user.id) == await other.by_id(user.id) == user
        async with database.transaction() as connection:
            await erase(connection, user.id, NOON)
        await until(lambda: user.id not in one.cache._held | other.cache._held)
        async with asyncio.timeout(10):
            while await redis.hget(  # noqa: ASYNC110 - seen from outside
                f"user:{{{user.id}}}", "user"
            ):
                await asyncio.sleep(0.005)
        assert await one.by_id(user.id) is None
    await redis.aclose()


@pytest.mark.parametrize("redis_there", [True, False])
async def test_a_change_is_told_to_every_process(
    database: Database, redis_url: str, redis_there: bool
) -> None:
    """Whoever changes the row, and whether or not Redis is there."""
    redis = redis_client(redis_url if redis_there else "unix:///nowhere")
    async with process(database, redis) as one, process(database, redis) as other:
        user = await added(one)
        for users in (one, other):
            assert await users.by_id(user.id) == user
        changed = await one.edit(user.id, TEACHER)
        assert changed
        assert await one.by_id(user.id) == changed
        await until(lambda: user.id not in other.cache._held)
        assert await other.by_id(user.id) == changed
        await one.delete(user.id, NOON)
        assert await one.by_id(user.id) is None
        await until(lambda: user.id not in other.cache._held)
        assert await other.by_id(user.id) is None
    await redis.aclose()


async def test_a_slow_reader_puts_nothing_stale_back(
    database: Database, redis_url: str
) -> None:
    """L17: it read before the change, and stores after it was told."""
    redis = redis_client(redis_url)
    async with process(database, redis) as users:
        old = await added(users)
        changed = await users.edit(old.id, TEACHER)
        await until(lambda: old.id in users.cache._least)
        assert changed
        await users.cache._mark(changed.id, changed.version)
        users.cache.keep(old)
        await users.cache._share(old)
        assert await users.by_id(old.id) == changed
        async with process(database, redis) as other:
            assert await other.by_id(old.id) == changed
    await redis.aclose()


async def test_without_the_channel_nothing_is_held(
    database: Database, redis_url: str, statements: list[str]
) -> None:
    """What is not told cannot be known: each read asks Postgres."""
    redis = redis_client(redis_url)
    users = cached(database, redis)
    user = await added(users)
    statements.clear()
    assert [await users.by_id(user.id) for _ in range(2)] == [user, user]
    assert len(statements) == 2
    await redis.aclose()


async def test_a_lost_channel_is_begun_anew(database: Database, redis_url: str) -> None:
    """L6: a terminated backend costs the cache, not an answer."""
    redis = redis_client(redis_url)
    async with process(database, redis) as users:
        user = await added(users)
        await users.by_id(user.id)
        async with database.reading() as connection:
            await connection.execute(
                sa.text(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                )
            )
        await until(lambda: not users.cache._told)
        assert await users.by_id(user.id) == user
        await until(lambda: users.cache._told)
    await redis.aclose()
