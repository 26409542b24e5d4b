"""Cache of accounts by id: in this process for seconds, in Redis for an hour.

A trigger in Postgres notifies every process of each change when it commits. The
process drops the account, and writes the new version to Redis, so that a slow reader
cannot put an older one back. While the connection for notifications is down, nothing
is cached in this process and Redis is not read: changes may have been missed. An
erased account is also removed from Redis by a handler of the outbox, which retries it.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import sqlalchemy as sa
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.accounts.users import Role, User, UserEdit
from server.domain.errors import StoreUnavailable
from server.domain.idempotency import IdempotencyRecord
from server.domain.outbox.entries import Entry, EventType
from server.store.accounts.users import PostgresUsers
from server.store.connections.connect import Database
from server.store.connections.faults import DATABASE_ERRORS
from server.store.credentials.revocations import RevocationFeed
from server.store.tables import outbox, users

CHANNEL = "users"
LOCAL_TTL_SECONDS = 5.0
REDIS_TTL_SECONDS = 3600
INVALIDATION_TTL_SECONDS = 60  # far longer than any read takes
MAX_ENTRIES = 10_000
CLEAR_BATCH_SIZE = 500
ERASED_VERSION = 2**53 - 1  # no account has a greater one; exact as a Lua number
# an account changed before that is no longer in Redis
CHANGE_WINDOW = timedelta(seconds=REDIS_TTL_SECONDS + 60)

# KEYS: the account's. ARGV: version, value ("" to invalidate), TTL in seconds.
_PUT_IF_NEWER = """
local cached = redis.call('HGET', KEYS[1], 'version')
if cached and tonumber(cached) > tonumber(ARGV[1]) then return 0 end
if cached == ARGV[1] and ARGV[2] == '' then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'user', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
# Oldest first. Redis holds nothing of accounts that changed earlier. The condition on
# delivered_at selects by an index: an event is not delivered before it is created.
_SINCE = sa.func.now() - CHANGE_WINDOW
_RECENT_CHANGES = (
    sa.select(users.c.id, users.c.version, users.c.updated_at.label("changed_at"))
    .where(users.c.version > 1, users.c.updated_at > _SINCE)
    .union_all(
        sa.select(
            outbox.c.user_id, sa.literal(ERASED_VERSION), outbox.c.created_at
        ).where(
            outbox.c.kind == EventType.USER_ERASED,
            outbox.c.created_at > _SINCE,
            sa.or_(outbox.c.delivered_at.is_(None), outbox.c.delivered_at > _SINCE),
        )
    )
    .order_by("changed_at")
)
Read = Callable[[int], Awaitable[User | None]]


def shape_version(entity: type[Any]) -> str:
    """Return a hash of a dataclass's field names and types.

    It is part of the cache key, so that two releases whose entities differ do not
    read each other's values while they run side by side.
    """
    shape = [(field.name, _type_name(field.type)) for field in fields(entity)]
    return hashlib.sha256(repr(shape).encode()).hexdigest()[:8]


def _type_name(annotation: Any) -> str:
    return str(getattr(annotation, "__name__", annotation))


_SHAPE = shape_version(User)


@dataclass(slots=True)
class CacheStatistics:
    """Look-ups by their result. A miss in this process is a look-up in Redis."""

    process_hits: int = 0
    process_misses: int = 0
    redis_hits: int = 0
    redis_misses: int = 0  # or Redis failed


class UserCache:
    """Reads accounts by id from this process, from Redis, or from Postgres."""

    def __init__(self, database: Database, redis: Redis, read: Read) -> None:
        self._database = database
        self._redis = redis
        self._put = redis.register_script(_PUT_IF_NEWER)
        self._read = read
        self._users: dict[int, tuple[User, float]] = {}  # with the time of expiry
        self._min_versions: dict[int, int] = {}  # notified: no older one is cached
        self._listening = False
        self.statistics = CacheStatistics()
        self._loop = asyncio.get_running_loop()

    async def by_id(self, user_id: int) -> User | None:
        """Return the account with this id."""
        cached = self._users.get(user_id)
        if cached and cached[1] > self._loop.time():
            self.statistics.process_hits += 1
            return cached[0]
        self.statistics.process_misses += 1
        user = await self._from_redis(user_id)
        if user is None:
            user = await self._read(user_id)
            if user and self._listening:
                await self._to_redis(user)
        if user:
            self.keep(user)
        return user

    def keep(self, user: User) -> None:
        """Cache an account in this process, which then sees its own change at once."""
        if self._listening and user.version >= self._min_versions.get(user.id, 0):
            _evict_oldest(self._users)
            self._users[user.id] = (user, self._loop.time() + LOCAL_TTL_SECONDS)

    def drop(self, user_id: int) -> None:
        """Remove an account from this process's cache."""
        self._users.pop(user_id, None)

    async def handle(self, entry: Entry) -> None:
        """Remove an erased account from Redis. Raises RedisError, OSError."""
        if entry.kind != EventType.USER_ERASED or entry.user_id is None:
            return
        self._require(entry.user_id, ERASED_VERSION)
        if datetime.now(UTC) - entry.created_at < CHANGE_WINDOW:
            await self._put_invalid(entry.user_id, ERASED_VERSION)

    async def listen(self) -> None:
        """Receive notifications until disconnected. Raises StoreUnavailable."""
        try:
            await self._database.listen(CHANNEL, self._notified, self._connected)
        except DATABASE_ERRORS as error:
            raise StoreUnavailable from error
        finally:
            self._clear()

    async def _from_redis(self, user_id: int) -> User | None:
        if not self._listening:
            return None
        with suppress(RedisError, OSError):
            raw = await self._redis.hget(_key(user_id), "user")
            user = _decode(raw) if raw else None
            if user and user.version >= self._min_versions.get(user_id, 0):
                self.statistics.redis_hits += 1
                return user
        self.statistics.redis_misses += 1
        return None

    async def _to_redis(self, user: User) -> None:
        seconds = int(REDIS_TTL_SECONDS * random.uniform(0.9, 1.0))  # noqa: S311 - jitter
        with suppress(RedisError, OSError):
            await self._put(
                keys=[_key(user.id)],
                args=[user.version, orjson.dumps(asdict(user)), seconds],
            )

    async def _connected(self, connection: AsyncConnection) -> None:
        """Invalidate in Redis what may have changed while nothing was received."""
        for row in await connection.execute(_RECENT_CHANGES):
            self._require(row.id, row.version)
            await self._invalidate(row.id, row.version)
        self._listening = True

    def _notified(
        self, _connection: object, _pid: int, _channel: str, text: str
    ) -> None:
        user_id, version = map(int, text.split())
        self._require(user_id, version)
        task = self._loop.create_task(self._invalidate(user_id, version))
        task.add_done_callback(lambda _: None)

    def _require(self, user_id: int, version: int) -> None:
        """Return no older version from now on, whatever Redis holds."""
        min_version = self._min_versions.pop(user_id, 0)
        _evict_oldest(self._min_versions)
        self._min_versions[user_id] = max(version, min_version)
        cached = self._users.get(user_id)
        if cached and cached[0].version < version:
            del self._users[user_id]

    async def _invalidate(self, user_id: int, version: int) -> None:
        with suppress(RedisError, OSError):
            await self._put_invalid(user_id, version)

    async def _put_invalid(self, user_id: int, version: int) -> None:
        ttl = INVALIDATION_TTL_SECONDS
        await self._put(keys=[_key(user_id)], args=[version, "", ttl])

    def _clear(self) -> None:
        self._listening = False
        self._users.clear()


async def clear_cached_users(redis: Redis) -> None:
    """Remove every account from Redis. Raises RedisError, OSError."""
    batch: list[str | bytes] = []
    async for key in redis.scan_iter(match="user:{*", count=CLEAR_BATCH_SIZE):
        batch.append(key)
        if len(batch) == CLEAR_BATCH_SIZE:
            await asyncio.gather(*map(redis.unlink, batch))
            batch.clear()
    await asyncio.gather(*map(redis.unlink, batch))


class CachedUsers(PostgresUsers):
    """Stores accounts in Postgres, and reads them by id through the cache."""

    def __init__(self, database: Database, redis: Redis, feed: RevocationFeed) -> None:
        super().__init__(database, feed)
        self.cache = UserCache(database, redis, super().by_id)

    async def by_id(self, user_id: int) -> User | None:
        """Return the account with this id."""
        return await self.cache.by_id(user_id)

    async def edit(
        self,
        user_id: int,
        edit: UserEdit,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        """Change an account; this process sees the change at once."""
        user = await super().edit(user_id, edit, idempotency)
        self.cache.keep(user)
        return user

    async def delete(self, user_id: int, now: datetime) -> None:
        """Delete an account; this process sees the change at once."""
        await super().delete(user_id, now)
        self.cache.drop(user_id)


def _key(user_id: int) -> str:
    # the braces are a hash tag: a cluster keeps all keys of an account on one node
    return f"user:{{{user_id}}}:{_SHAPE}"


def _evict_oldest(table: dict[int, Any]) -> None:
    """Make room for one more entry."""
    if len(table) >= MAX_ENTRIES:
        del table[next(iter(table))]


def _decode(raw: bytes | str) -> User | None:
    """Return the account in a cached value; None, a cache miss, if it is unreadable."""
    try:
        values = orjson.loads(raw)
        for name in ("created_at", "updated_at"):
            values[name] = datetime.fromisoformat(values[name])
        values["role"] = Role(values["role"])
        return User(**values)
    except (ValueError, TypeError, KeyError):
        return None
