"""The cache of accounts is never older than the last notification of Postgres."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, make_dataclass, replace
from datetime import UTC, datetime

import orjson
import pytest
import pytest_asyncio
import sqlalchemy as sa
from redis.asyncio import Redis
from redis.exceptions import RedisError

from server.domain.accounts.users import NewUser, Role, User, UserEdit
from server.domain.credentials.revocations import Revocations
from server.domain.outbox.entries import Entry, EventType
from server.store.accounts.erasure import begin_erasure, delete_account
from server.store.accounts.user_cache import (
    CachedUsers,
    CacheStatistics,
    _key,
    shape_version,
)
from server.store.connections.connect import Database
from server.store.credentials.revocations import RevocationFeed
from server.store.redis.redis_client import redis_client
from server.workers.supervisor import Subscription, supervise
from tests.fakes import NOON, Clock
from tests.round_trips import counting_connections, round_trips

TEACHER = UserEdit({"role": Role.TEACHER}, "", NOON)


def cached(database: Database, redis: Redis) -> CachedUsers:
    clock = Clock()
    feed = RevocationFeed(database, redis, Revocations(clock), clock)
    return CachedUsers(database, redis, feed)


@asynccontextmanager
async def process(database: Database, redis: Redis) -> AsyncIterator[CachedUsers]:
    """Return the cache of one process, once it receives notifications."""
    users = cached(database, redis)
    async with supervise(Subscription("user cache", users.cache.listen)):
        await until(lambda: users.cache._listening)
        yield users


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.005)


async def added(users: CachedUsers) -> User:
    return await users.add(NewUser("a@x.co", "ana", "h", Role.STUDENT, NOON))


@pytest_asyncio.fixture
async def counted(database_url: str) -> AsyncIterator[Database]:
    """Return a database whose statements `reads` counts."""
    with counting_connections():
        database = Database(database_url)
        yield database
        await database.close()


@contextmanager
def reads() -> Iterator[list[str]]:
    """Return a list that has, after the block, the reads of accounts in it."""
    found: list[str] = []
    with round_trips() as statements:
        yield found
    found += [text for text in statements if "from users" in text]


async def test_user_cache_second_read_sends_no_query(
    counted: Database, redis_url: str
) -> None:
    redis = redis_client(redis_url)
    async with process(counted, redis) as users:
        user = await added(users)
        with reads() as statements:
            assert [await users.by_id(user.id) for _ in range(3)] == [user] * 3
        assert len(statements) == 1
        assert users.cache.statistics == CacheStatistics(2, 1, 0, 1)
    await redis.aclose()


async def test_user_cache_is_shared_through_redis(
    counted: Database, each_redis_url: str
) -> None:
    redis = redis_client(each_redis_url)
    async with process(counted, redis) as one, process(counted, redis) as other:
        user = await added(one)
        with reads() as statements:
            await one.by_id(user.id)
        assert len(statements) == 1
        with reads() as statements:
            assert await other.by_id(user.id) == user
        assert statements == []
        assert other.cache.statistics == CacheStatistics(0, 1, 1, 0)
    await redis.aclose()


async def test_user_cache_drops_erased_user_in_every_process(
    database: Database, each_redis_url: str
) -> None:
    """In Redis the new version replaces the account."""
    redis = redis_client(each_redis_url)
    async with process(database, redis) as one, process(database, redis) as other:
        user = await added(one)
        assert await one.by_id(user.id) == await other.by_id(user.id) == user
        async with database.transaction() as connection:
            await begin_erasure(connection, user.id, NOON)
        await until(lambda: user.id not in one.cache._users | other.cache._users)
        async with asyncio.timeout(10):
            while await redis.hget(  # noqa: ASYNC110 - seen from outside
                _key(user.id), "user"
            ):
                await asyncio.sleep(0.005)
        assert await one.by_id(user.id) is None
    await redis.aclose()


async def erase(database: Database, user_id: int) -> None:
    """Erase an account: its row and the event remain, then the event alone."""
    now = datetime.now(UTC)
    async with database.transaction() as connection:
        await begin_erasure(connection, user_id, now)
    async with database.transaction() as connection:
        await delete_account(connection, user_id)


async def test_user_cache_forgets_user_erased_while_redis_was_away(
    database: Database, redis_url: str
) -> None:
    """A process that starts later does not read the erased account from Redis."""
    redis = redis_client(redis_url)
    async with process(database, redis) as users:
        user = await added(users)
        await users.by_id(user.id)
    assert await redis.hget(_key(user.id), "user")
    await erase(database, user.id)
    async with process(database, redis) as users:
        assert await users.by_id(user.id) is None
    await redis.aclose()


async def test_user_cache_refuses_erased_user_that_redis_still_holds(
    database: Database, redis_url: str
) -> None:
    """Redis comes back after the process has received the erasure, or missed it."""
    redis, away = redis_client(redis_url), redis_client("unix:///nowhere")
    async with process(database, redis) as users:
        user = await added(users)
        await users.by_id(user.id)
    await erase(database, user.id)
    async with process(database, away) as users:
        users.cache._redis = redis
        assert await users.by_id(user.id) is None
        users.cache._clear()  # the connection for notifications is lost
        users.cache._listening = True
        assert await users.by_id(user.id) is None
    for client in (redis, away):
        await client.aclose()


async def test_user_cache_handles_erasure_until_redis_is_back(
    database: Database, redis_url: str
) -> None:
    """The outbox repeats a failed attempt; after the time to live there is no need."""
    redis, away = redis_client(redis_url), redis_client("unix:///nowhere")
    async with process(database, redis) as users:
        user = await added(users)
        await users.by_id(user.id)
        event = Entry(1, EventType.USER_ERASED, user.id, None, {}, datetime.now(UTC), 1)
        without_redis = cached(database, away).cache
        with pytest.raises(RedisError):
            await without_redis.handle(event)
        await without_redis.handle(replace(event, created_at=NOON))
        assert await redis.hget(_key(user.id), "user")
        await cached(database, redis).cache.handle(event)
        assert not await redis.hget(_key(user.id), "user")
    for client in (redis, away):
        await client.aclose()


@pytest.mark.parametrize("redis_available", [True, False])
async def test_user_cache_sees_changes_of_other_processes(
    database: Database, redis_url: str, redis_available: bool
) -> None:
    """Also while Redis is unavailable."""
    redis = redis_client(redis_url if redis_available else "unix:///nowhere")
    async with process(database, redis) as one, process(database, redis) as other:
        user = await added(one)
        for users in (one, other):
            assert await users.by_id(user.id) == user
        changed = await one.edit(user.id, TEACHER)
        assert changed
        assert await one.by_id(user.id) == changed
        await until(lambda: user.id not in other.cache._users)
        assert await other.by_id(user.id) == changed
        await one.delete(user.id, NOON)
        assert await one.by_id(user.id) is None
        await until(lambda: user.id not in other.cache._users)
        assert await other.by_id(user.id) is None
    await redis.aclose()


async def test_user_cache_refuses_older_version_of_slow_reader(
    database: Database, redis_url: str
) -> None:
    """L17: it read before the change, and writes after the notification."""
    redis = redis_client(redis_url)
    async with process(database, redis) as users:
        old = await added(users)
        changed = await users.edit(old.id, TEACHER)
        await until(lambda: old.id in users.cache._min_versions)
        assert changed
        await users.cache._invalidate(changed.id, changed.version)
        users.cache.keep(old)
        await users.cache._to_redis(old)
        assert await users.by_id(old.id) == changed
        async with process(database, redis) as other:
            assert await other.by_id(old.id) == changed
    await redis.aclose()


async def test_user_cache_is_off_without_notifications(
    counted: Database, redis_url: str
) -> None:
    """Changes may be missed: each read queries Postgres."""
    redis = redis_client(redis_url)
    users = cached(counted, redis)
    user = await added(users)
    with reads() as statements:
        assert [await users.by_id(user.id) for _ in range(2)] == [user, user]
    assert len(statements) == 2
    await redis.aclose()


async def test_user_cache_reconnects_after_lost_connection(
    database: Database, redis_url: str
) -> None:
    """L6: reads succeed while the connection for notifications is down."""
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
        await until(lambda: not users.cache._listening)
        assert await users.by_id(user.id) == user
        await until(lambda: users.cache._listening)
    await redis.aclose()


def _with(raw: bytes, **values: object) -> bytes:
    return orjson.dumps(orjson.loads(raw) | values)


def _without(raw: bytes, name: str) -> bytes:
    return orjson.dumps({k: v for k, v in orjson.loads(raw).items() if k != name})


UNREADABLE: dict[str, Callable[[bytes], bytes]] = {
    "additional field": lambda raw: _with(raw, nickname="a"),
    "missing field": lambda raw: _without(raw, "username"),
    "missing time": lambda raw: _without(raw, "updated_at"),
    "unknown role": lambda raw: _with(raw, role=99),
    "wrong type": lambda raw: _with(raw, created_at=7),
    "another document": lambda raw: b"[1]",
    "garbage": lambda raw: b"\xff\x00{",
}


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=list(UNREADABLE))
async def test_user_cache_treats_unreadable_value_as_miss(
    database: Database, redis_url: str, change: Callable[[bytes], bytes]
) -> None:
    """A value of another release, or a damaged one, never fails a read."""
    redis = redis_client(redis_url)
    async with process(database, redis) as writer, process(database, redis) as reader:
        user = await added(writer)
        await writer.by_id(user.id)
        raw = await redis.hget(_key(user.id), "user")
        assert isinstance(raw, bytes)
        await redis.hset(_key(user.id), "user", change(raw))
        assert await reader.by_id(user.id) == user
        assert await redis.hget(_key(user.id), "user") == raw
    await redis.aclose()


@dataclass
class Present:
    id: int
    name: str


@pytest.mark.parametrize(
    "fields",
    [
        [("id", "int"), ("name", "str"), ("nickname", "str")],
        [("id", "int")],
        [("id", "int"), ("name", "str | None")],
        [("id", "int"), ("username", "str")],
    ],
)
def test_shape_version_changes_with_fields(fields: list[tuple[str, str]]) -> None:
    """Two releases with different entities use different keys."""
    same = make_dataclass("Same", [("id", int), ("name", str)])
    assert shape_version(same) == shape_version(Present)
    assert shape_version(make_dataclass("Next", fields)) != shape_version(Present)


def test_user_cache_key_carries_shape_version() -> None:
    assert _key(7) == f"user:{{7}}:{shape_version(User)}"
