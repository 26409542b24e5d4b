"""Cache of accounts by id: in this process for seconds, in Redis for an hour.

Each poll reads the new versions of accounts from the outbox. The process drops these
accounts, and writes the versions to Redis, so that a slow reader cannot put an older
one back. While no poll succeeds, neither the accounts in this process nor Redis are
read: changes may have been missed. An erased account is also removed from Redis by a
handler of the outbox, which retries it.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import sqlalchemy as sa
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from server.domain.accounts.users import Role, User
from server.domain.errors import StoreUnavailable
from server.domain.outbox.entries import Entry, EventType
from server.store.accounts.new_versions import ERASED_VERSION, NewVersion, NewVersions
from server.store.accounts.user_changes import UserChangeFeed
from server.store.accounts.users import PostgresUsers
from server.store.connections.connect import Database
from server.store.connections.signals import Signals
from server.store.connections.wakeup_channel import WakeupChannel
from server.store.credentials.revocations import RevocationFeed
from server.store.tables import outbox, users

log = structlog.get_logger()
# A change is seen by the poll that its message causes. The next poll sees it if the
# message was lost; without messages, it has to do so within 500 ms.
MAX_AGE_SECONDS = 0.5
MAX_AGE_WITH_MESSAGES_SECONDS = 2.0
LOCAL_TTL_SECONDS = 5.0
REDIS_TTL_SECONDS = 3600
INVALIDATION_TTL_SECONDS = 60  # far longer than any read takes
MAX_ENTRIES = 10_000
PIPELINE_SIZE = 500
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

    def __init__(
        self,
        database: Database,
        redis: Redis,
        read: Read,
        changes: UserChangeFeed,
        messages: WakeupChannel,
    ) -> None:
        """Learn from `changes` what is settled; `messages` announce changes."""
        self._database = database
        self._redis = redis
        self._put = redis.register_script(_PUT_IF_NEWER)
        self._read = read
        self._changes = changes
        self._messages = messages
        self._users: dict[int, tuple[User, float]] = {}  # with the time of expiry
        self._min_versions: dict[int, int] = {}  # no older one is cached
        self._new_versions: NewVersions | None = None  # None until started
        self._first_id: int | None = None  # the greatest outbox id of the first poll
        self._read_at = -math.inf  # the last poll that missed nothing began then
        self._background: set[asyncio.Task[None]] = set()
        self.statistics = CacheStatistics()
        self._loop = asyncio.get_running_loop()

    @property
    def is_current(self) -> bool:
        """Whether no change can have been missed for longer than documented."""
        has_messages = self._messages.is_subscribed
        limit = MAX_AGE_WITH_MESSAGES_SECONDS if has_messages else MAX_AGE_SECONDS
        return self._loop.time() - self._read_at <= limit

    async def by_id(self, user_id: int) -> User | None:
        """Return the account with this id."""
        cached = self._users.get(user_id)
        if cached and cached[1] > self._loop.time() and self.is_current:
            self.statistics.process_hits += 1
            return cached[0]
        self.statistics.process_misses += 1
        user = await self._from_redis(user_id)
        if user is None:
            user = await self._read(user_id)
            if user and self.is_current:
                await self._to_redis(user)
        if user:
            self.keep(user)
        return user

    def keep(self, user: User) -> None:
        """Cache an account in this process, unless it has a newer version."""
        if self.is_current and user.version >= self._min_versions.get(user.id, 0):
            _evict_oldest(self._users)
            self._users[user.id] = (user, self._loop.time() + LOCAL_TTL_SECONDS)

    def replace(self, user: User) -> None:
        """Cache an account that this process has changed."""
        self._require(user.id, user.version)
        self.keep(user)

    def remove(self, user_id: int, version: int = ERASED_VERSION) -> None:
        """Return no older version than the one in which this process deleted it."""
        self._require(user_id, version)
        self._users.pop(user_id, None)

    async def handle(self, entry: Entry) -> None:
        """Remove an erased account from Redis. Raises RedisError, OSError."""
        if entry.kind != EventType.USER_ERASED or entry.user_id is None:
            return
        self._require(entry.user_id, ERASED_VERSION)
        if datetime.now(UTC) - entry.created_at < CHANGE_WINDOW:
            await self._put_invalid(entry.user_id, ERASED_VERSION)

    async def follow(self, signals: Signals) -> None:
        """Read the versions that are new since the last poll. Raises StoreUnavailable.

        At first, accounts that changed lately are removed from Redis, in the
        background, once no older transaction can still change one.
        """
        if self._new_versions:
            versions, is_complete = await self._new_versions.read(signals)
            self._invalidate(versions)
            if is_complete:
                self._read_at = signals.read_at
            return
        if self._first_id is None:
            self._first_id = signals.newest_id
        settled = self._changes.settled
        if settled is not None and settled >= self._first_id and not self._background:
            self._run(self._start(self._first_id))

    async def _start(self, first_id: int) -> None:
        try:
            async with self._database.reading() as connection:
                rows = (await connection.execute(_RECENT_CHANGES)).all()
        except StoreUnavailable:  # the next poll starts again
            return
        versions = [NewVersion(row.id, row.version) for row in rows]
        for version in versions:
            self._require(*version)
        await self._write_invalid(versions)
        settled = lambda: self._changes.settled  # noqa: E731
        self._new_versions = NewVersions(self._database, settled, first_id)
        self._messages.wake.set()

    def _invalidate(self, versions: Sequence[NewVersion]) -> None:
        """Return no older versions from now on, and write them to Redis."""
        for version in versions:
            self._require(*version)
        if versions:
            self._run(self._write_invalid(versions))

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _from_redis(self, user_id: int) -> User | None:
        if not self.is_current:
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

    def _require(self, user_id: int, version: int) -> None:
        """Return no older version from now on, whatever Redis holds."""
        min_version = self._min_versions.pop(user_id, 0)
        _evict_oldest(self._min_versions)
        self._min_versions[user_id] = max(version, min_version)
        cached = self._users.get(user_id)
        if cached and cached[0].version < version:
            del self._users[user_id]

    async def _write_invalid(self, versions: Sequence[NewVersion]) -> None:
        for start in range(0, len(versions), PIPELINE_SIZE):
            part = versions[start : start + PIPELINE_SIZE]
            await asyncio.gather(
                *(self._put_invalid(*version) for version in part),
                return_exceptions=True,
            )

    async def _put_invalid(self, user_id: int, version: int) -> None:
        ttl = INVALIDATION_TTL_SECONDS
        await self._put(keys=[_key(user_id)], args=[version, "", ttl])


class CachedUsers(PostgresUsers):
    """Stores accounts in Postgres, and reads them by id through the cache."""

    def __init__(
        self,
        database: Database,
        redis: Redis,
        feed: RevocationFeed,
        changes: UserChangeFeed,
    ) -> None:
        super().__init__(database, feed)
        read = super().by_id
        self.cache = UserCache(database, redis, read, changes, feed.wakeups)

    async def by_id(self, user_id: int) -> User | None:
        """Return the account with this id."""
        return await self.cache.by_id(user_id)

    def _committed(self, user: User, *, is_deleted: bool = False) -> None:
        """Let this process see its change at once."""
        if is_deleted:
            self.cache.remove(user.id, user.version)
        else:
            self.cache.replace(user)


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
