"""Cache of accounts by id: in this process for seconds, in Redis for an hour.

Each poll reads the new versions of accounts from the outbox. The process drops these
accounts, and writes the versions to Redis, so that a slow reader cannot put an older
one back. While no poll succeeds, neither the accounts in this process nor Redis are
read: changes may have been missed. An erased account is also removed from Redis by a
handler of the outbox, which retries it.

Redis may miss a version, or lose it in a failover. So the process itself refuses older
ones, for as long as Redis may hold them. If it has to forget a version earlier, because
there are too many, it does not read Redis for the rest of that time.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from redis.asyncio import Redis

from server.domain.accounts.users import User
from server.domain.errors import StoreUnavailable
from server.domain.outbox.entries import Entry, EventType
from server.store.accounts.new_versions import ERASED_VERSION, NewVersion, NewVersions
from server.store.accounts.redis_users import REDIS_TTL_SECONDS, RedisUsers
from server.store.accounts.user_changes import UserChangeFeed
from server.store.accounts.users import PostgresUsers
from server.store.connections.connect import Database
from server.store.connections.signals import Signals
from server.store.connections.wakeup_channel import WakeupChannel
from server.store.credentials.revocations import RevocationFeed
from server.store.tables import outbox, users

# Of the last poll, by whether messages are received. With them, a poll sees a change at
# once, and the next poll sees it if its message was lost.
MAX_AGE_SECONDS = {False: 0.5, True: 1.0}
LOCAL_TTL_SECONDS = 5.0
MAX_ENTRIES = 10_000
MAX_VERSIONS = 50_000  # of the accounts that changed in the last hour; 11 MB
# an account changed before that is no longer in Redis
CHANGE_WINDOW = timedelta(seconds=REDIS_TTL_SECONDS + 60)

# Redis holds nothing of accounts that changed earlier, and is not read if there are
# more. The condition on delivered_at selects by an index: an event is not delivered
# before it is created.
_SINCE = sa.func.now() - CHANGE_WINDOW
_RECENT_CHANGES = (
    sa.select(users.c.id, users.c.version)
    .where(users.c.version > 1, users.c.updated_at > _SINCE)
    .union_all(
        sa.select(outbox.c.user_id, sa.literal(ERASED_VERSION)).where(
            outbox.c.kind == EventType.USER_ERASED,
            outbox.c.created_at > _SINCE,
            sa.or_(outbox.c.delivered_at.is_(None), outbox.c.delivered_at > _SINCE),
        )
    )
    .limit(MAX_VERSIONS + 1)
)
Read = Callable[[int], Awaitable[User | None]]


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
        self._redis_users = RedisUsers(redis)
        self._read = read
        self._changes = changes
        self._messages = messages
        self._users: dict[int, tuple[User, float]] = {}  # with the time of expiry
        # no older one is cached; with the time at which it was noted, earliest first
        self._min_versions: OrderedDict[int, tuple[int, float]] = OrderedDict()
        self._forgotten_at = -math.inf  # no version noted later was forgotten
        self._new_versions: NewVersions | None = None  # None until started
        self._first_id: int | None = None  # the greatest outbox id of the first poll
        self._read_at = -math.inf  # the last poll that missed nothing began then
        self._background: set[asyncio.Task[None]] = set()
        self.statistics = CacheStatistics()
        self._loop = asyncio.get_running_loop()

    @property
    def is_current(self) -> bool:
        """Whether no change can have been missed for longer than documented."""
        age = self._loop.time() - self._read_at
        return age <= MAX_AGE_SECONDS[self._messages.is_subscribed]

    async def by_id(self, user_id: int) -> User | None:
        """Return the account with this id."""
        cached, now = self._users.get(user_id), self._loop.time()
        # is_current, written out: nearly every call comes here
        max_age = MAX_AGE_SECONDS[self._messages.is_subscribed]
        if cached and cached[1] > now and now - self._read_at <= max_age:
            self.statistics.process_hits += 1
            return cached[0]
        self.statistics.process_misses += 1
        user = await self._from_redis(user_id)
        if user is None:
            user = await self._read(user_id)
            if user and self._is_newest(user, now):
                await self._redis_users.put(user)
        if user:
            self.keep(user, now)
        return user

    def keep(self, user: User, since: float) -> None:
        """Cache an account in this process, unless it may have a newer version.

        It was its newest version at some time after `since`, in seconds of the loop.
        """
        if self._is_newest(user, since):
            if len(self._users) >= MAX_ENTRIES:
                del self._users[next(iter(self._users))]
            self._users[user.id] = (user, self._loop.time() + LOCAL_TTL_SECONDS)

    def replace(self, user: User) -> None:
        """Cache an account that this process has changed."""
        self._require(user.id, user.version)
        self.keep(user, self._oldest_in_redis())

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
            await self._redis_users.invalidate(entry.user_id, ERASED_VERSION)

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
        if len(rows) > MAX_VERSIONS:  # there may be more
            self._forgotten_at = self._loop.time()
        await self._redis_users.invalidate_all(versions)
        settled = lambda: self._changes.settled  # noqa: E731
        self._new_versions = NewVersions(self._database, settled, first_id)
        self._messages.wake.set()

    def _invalidate(self, versions: Sequence[NewVersion]) -> None:
        """Return no older versions from now on, and write them to Redis."""
        for version in versions:
            self._require(*version)
        if versions:
            self._run(self._redis_users.invalidate_all(versions))

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _from_redis(self, user_id: int) -> User | None:
        if not self.is_current or self._forgotten_at >= self._oldest_in_redis():
            return None
        user = await self._redis_users.get(user_id)
        if user and self._is_newest(user, self._oldest_in_redis()):
            self.statistics.redis_hits += 1
            return user
        self.statistics.redis_misses += 1
        return None

    def _oldest_in_redis(self) -> float:
        """Return since when an account in Redis may have changed."""
        return self._loop.time() - CHANGE_WINDOW.total_seconds()

    def _is_newest(self, user: User, since: float) -> bool:
        """Whether it is known that the account has not changed again since then."""
        min_version, _ = self._min_versions.get(user.id, (0, 0.0))
        is_known = self.is_current and self._forgotten_at < since
        return is_known and user.version >= min_version

    def _require(self, user_id: int, version: int) -> None:
        """Return no older version from now on, whatever Redis holds."""
        min_version, _ = self._min_versions.pop(user_id, (0, 0.0))
        if len(self._min_versions) >= MAX_VERSIONS:
            _, (_, self._forgotten_at) = self._min_versions.popitem(last=False)
        noted = max(version, min_version), self._loop.time()
        self._min_versions[user_id] = noted
        cached = self._users.get(user_id)
        if cached and cached[0].version < version:
            del self._users[user_id]


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
