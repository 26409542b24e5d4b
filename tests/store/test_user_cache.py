"""The cache of accounts is never older than the last poll of the outbox."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, make_dataclass, replace
from datetime import UTC, datetime

import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from server.domain.accounts.users import NewUser, Role, User, UserEdit
from server.domain.credentials.revocations import Revocations
from server.domain.outbox.entries import Entry, EventType
from server.store.accounts import user_cache
from server.store.accounts.erasure import begin_erasure, delete_account
from server.store.accounts.redis_users import RedisUsers, cache_key, shape_version
from server.store.accounts.user_cache import (
    MAX_AGE_SECONDS,
    CachedUsers,
    CacheStatistics,
)
from server.store.accounts.user_changes import MIN_INTERVAL, UserChangeFeed
from server.store.accounts.user_reads import UserReads
from server.store.accounts.users import changed
from server.store.connections.connect import Database
from server.store.connections.signals import SignalReader
from server.store.credentials.revocations import RevocationFeed
from server.store.redis.redis_client import redis_client
from server.workers.periodic_jobs import DIGEST_AFTER
from server.workers.poller import Poller
from server.workers.supervisor import Subscription, supervise
from tests.fakes import NOON, Clock
from tests.round_trips import counting_connections, round_trips

TEACHER = UserEdit({"role": Role.TEACHER}, "", NOON)


def cached(database: Database, redis: Redis) -> CachedUsers:
    clock = Clock()
    feed = RevocationFeed(database, redis, Revocations(clock), clock)
    changes = UserChangeFeed(database, UserReads(database))
    return CachedUsers(database, redis, feed, changes)


def poller_of(database: Database, users: CachedUsers) -> Poller:
    """Return what keeps the cache of a process current."""
    clock, cache = Clock(), users.cache
    readers = cache._changes.follow, cache.follow
    signals = SignalReader(database, clock, users._feed, DIGEST_AFTER, *readers)
    return Poller(
        "signals",
        signals.refresh,
        cache._changes.interval,
        wake=cache._messages.wake,
        min_interval=MIN_INTERVAL,
    )


@asynccontextmanager
async def process(database: Database, redis: Redis) -> AsyncIterator[CachedUsers]:
    """Return the cache of one process, once it polls and receives messages."""
    users = cached(database, redis)
    messages = users.cache._messages
    database.announce = messages.publish
    poller = poller_of(database, users)
    async with supervise(poller, Subscription("messages", messages.listen)):
        await until(lambda: users.cache.is_current)
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
                cache_key(user.id), "user"
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
    assert await redis.hget(cache_key(user.id), "user")
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
        users.cache._redis_users = RedisUsers(redis)
        assert await users.by_id(user.id) is None
        users.cache._users.clear()
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
        assert await redis.hget(cache_key(user.id), "user")
        await cached(database, redis).cache.handle(event)
        assert not await redis.hget(cache_key(user.id), "user")
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
    """L17: it read before the change, and writes after the poll."""
    redis = redis_client(redis_url)
    async with process(database, redis) as users:
        old, since = await added(users), users.cache._loop.time()
        changed = await users.edit(old.id, TEACHER)
        await until(lambda: old.id in users.cache._min_versions)
        assert changed
        await users.cache._redis_users.invalidate(changed.id, changed.version)
        users.cache.keep(old, since)
        await users.cache._redis_users.put(old)
        assert await users.by_id(old.id) == changed
        async with process(database, redis) as other:
            assert await other.by_id(old.id) == changed
    await redis.aclose()


async def restore_in_redis(users: CachedUsers, redis: Redis, old: User) -> None:
    """Put an old version back, as if Redis had lost the new one in a failover."""
    key = cache_key(old.id)
    async with asyncio.timeout(10):
        while await redis.hget(key, "user") != b"":  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.005)
    await redis.delete(key)
    await users.cache._redis_users.put(old)
    assert await users.cache._redis_users.get(old.id) == old


async def test_user_cache_does_not_read_redis_after_forgetting_a_version(
    database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis may hold an older one until the time to live has passed."""
    monkeypatch.setattr(user_cache, "MAX_VERSIONS", 1)
    redis = redis_client(redis_url)
    async with process(database, redis) as users:
        cache, ana = users.cache, await added(users)
        bea = await users.add(NewUser("b@x.co", "bea", "h", Role.STUDENT, NOON))
        await users.by_id(ana.id)
        changed = await users.edit(ana.id, TEACHER)
        await restore_in_redis(users, redis, ana)
        await users.edit(bea.id, TEACHER)
        cache._users.clear()
        assert await users.by_id(ana.id) == changed
        assert cache.statistics.redis_hits == 0
        cache._forgotten_at -= user_cache.CHANGE_WINDOW.total_seconds()
        cache._users.clear()
        assert await users.by_id(ana.id) == changed
        assert cache.statistics.redis_hits == 1
    await redis.aclose()


async def test_user_cache_refuses_old_read_after_forgetting_its_version(
    database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two accounts change, of which one was read before, by a slow reader."""
    monkeypatch.setattr(user_cache, "MAX_VERSIONS", 1)
    redis = redis_client(redis_url)
    async with process(database, redis) as users:
        cache, ana = users.cache, await added(users)
        bea = await users.add(NewUser("b@x.co", "bea", "h", Role.STUDENT, NOON))
        read = cache._read

        async def slow_read(user_id: int) -> User | None:
            old = await read(user_id)
            for user in (ana, bea):
                await users.edit(user.id, TEACHER)
            return old

        cache._users.clear()
        cache._read = slow_read
        assert await users.by_id(ana.id) == ana
        cached, _ = cache._users.get(ana.id, (None, 0.0))
        assert cached is None or cached.version > ana.version
    await redis.aclose()


async def test_user_cache_does_not_read_redis_if_too_many_accounts_changed_before(
    database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process starts while Redis is away, which then has the old versions."""
    monkeypatch.setattr(user_cache, "MAX_VERSIONS", 1)
    redis, away = redis_client(redis_url), redis_client("unix:///nowhere")
    async with process(database, redis) as users:
        old = [
            await added(users),
            await users.add(NewUser("b@x.co", "bea", "h", Role.STUDENT, NOON)),
        ]
        for user in old:
            await users.by_id(user.id)
    edit = UserEdit({"role": Role.TEACHER}, "", datetime.now(UTC))
    changed = [await cached(database, away).edit(user.id, edit) for user in old]
    async with process(database, away) as users:
        users.cache._redis_users = RedisUsers(redis)
        assert [await users.cache._redis_users.get(user.id) for user in old] == old
        assert [await users.by_id(user.id) for user in old] == changed
    for client in (redis, away):
        await client.aclose()


async def test_user_cache_is_off_without_polls(
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


async def test_user_cache_is_off_after_failed_polls(
    database: Database, redis_url: str
) -> None:
    """L6: reads succeed meanwhile, and see what was changed."""
    redis = redis_client("unix:///nowhere")
    users = cached(database, redis)
    poller = poller_of(database, users)
    async with supervise(poller):
        await until(lambda: users.cache.is_current)
        user = await added(users)
        assert await users.by_id(user.id) == user
    other = cached(database, redis)
    changed = await other.edit(user.id, TEACHER)
    await asyncio.sleep(MAX_AGE_SECONDS[False])
    assert not users.cache.is_current
    assert await users.by_id(user.id) == changed
    async with supervise(poller):
        await until(lambda: users.cache.is_current)
        assert await users.by_id(user.id) == changed
    await redis.aclose()


async def test_user_cache_sees_change_that_no_message_announced(
    database: Database, redis_url: str
) -> None:
    """Its process was killed between the commit and the message."""
    redis = redis_client(redis_url)
    async with process(database, redis) as users:
        user = await added(users)
        assert await users.by_id(user.id) == user
        database.announce = lambda: None
        changed = await cached(database, redis).edit(user.id, TEACHER)
        await until(lambda: user.id not in users.cache._users)
        assert await users.by_id(user.id) == changed
    await redis.aclose()


async def test_user_cache_sees_change_while_older_transaction_is_open(
    database: Database, redis_url: str
) -> None:
    """The change is not settled. The older transaction then changes the account."""
    redis = redis_client(redis_url)
    async with process(database, redis) as users:
        ana = await added(users)
        bea = await users.add(NewUser("b@x.co", "bea", "h", Role.STUDENT, NOON))
        for user in (ana, bea):
            assert await users.by_id(user.id) == user
        async with database.transaction() as older:
            await changed(
                older, EventType.USER_UPDATED, bea.id, NOON, {"role": Role.TEACHER}
            )
            await cached(database, redis).edit(ana.id, TEACHER)
            await until(lambda: ana.id not in users.cache._users)
            assert bea.id in users.cache._users
        await until(lambda: bea.id not in users.cache._users)
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
        raw = await redis.hget(cache_key(user.id), "user")
        assert isinstance(raw, bytes)
        await redis.hset(cache_key(user.id), "user", change(raw))
        assert await reader.by_id(user.id) == user
        assert await redis.hget(cache_key(user.id), "user") == raw
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
    assert cache_key(7) == f"user:{{7}}:{shape_version(User)}"
