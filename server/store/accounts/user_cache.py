"""Accounts close at hand: in this process for seconds, in Redis for an hour.

Postgres tells every change when it commits, on a channel of its own: this process
drops what it holds, and marks the version in Redis, so that no slow reader can put
an older one back. While the channel is down nothing is held in this process, and
Redis is not asked: what was told meanwhile is not known.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any

import orjson
import sqlalchemy as sa
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.accounts.users import Role, User, UserEdit
from server.domain.errors import StoreUnavailable
from server.domain.idempotency import IdempotencyRecord
from server.store.accounts.users import PostgresUsers
from server.store.connect import Database
from server.store.credentials.revocations import RevocationFeed

log = structlog.get_logger()
CHANNEL = "users"
SECONDS_HELD = 5.0
SECONDS_IN_REDIS = 3600
SECONDS_MARKED = 60  # far longer than any read takes
SECONDS_BETWEEN_TRIES = 1.0
MOST = 10_000

# KEYS: the account's. ARGV: version, value ("" to mark it only), seconds.
_PUT_IF_NEWER = """
local held = redis.call('HGET', KEYS[1], 'version')
if held and tonumber(held) > tonumber(ARGV[1]) then return 0 end
if held == ARGV[1] and ARGV[2] == '' then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'user', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
Read = Callable[[int], Awaitable[User | None]]


class UserCache:
    """Gives accounts by id, from as near as they can be had."""

    def __init__(self, database: Database, redis: Redis, read: Read) -> None:
        self._database = database
        self._redis = redis
        self._put = redis.register_script(_PUT_IF_NEWER)
        self._read = read
        self._held: dict[int, tuple[User, float]] = {}
        self._least: dict[int, int] = {}  # versions told: nothing older is held
        self._told = False  # whether the channel is up
        self._loop = asyncio.get_running_loop()

    async def by_id(self, user_id: int) -> User | None:
        """Give the account with this id."""
        held = self._held.get(user_id)
        if held and held[1] > self._loop.time():
            return held[0]
        user = await self._shared(user_id)
        if user is None:
            user = await self._read(user_id)
            if user and self._told:
                await self._share(user)
        if user:
            self.keep(user)
        return user

    def keep(self, user: User) -> None:
        """Hold an account here; what this process wrote is visible at once."""
        if self._told and user.version >= self._least.get(user.id, 0):
            _trim(self._held)
            self._held[user.id] = (user, self._loop.time() + SECONDS_HELD)

    def drop(self, user_id: int) -> None:
        """Hold an account no longer."""
        self._held.pop(user_id, None)

    async def _shared(self, user_id: int) -> User | None:
        if not self._told:
            return None
        with suppress(RedisError, OSError):
            raw = await self._redis.hget(_key(user_id), "user")
            user = _user(raw) if raw else None
            if user and user.version >= self._least.get(user_id, 0):
                return user
        return None

    async def _share(self, user: User) -> None:
        seconds = int(SECONDS_IN_REDIS * random.uniform(0.9, 1.0))  # noqa: S311 - jitter
        with suppress(RedisError, OSError):
            await self._put(
                keys=[_key(user.id)],
                args=[user.version, orjson.dumps(asdict(user)), seconds],
            )

    async def run(self) -> None:
        """Take what Postgres tells, until cancelled; begin anew when it is lost."""
        while True:
            try:
                await self._database.listen(CHANNEL, self._hear, self._begun)
            except (StoreUnavailable, sa.exc.SQLAlchemyError) as error:
                log.warning("changes are not told", cause=type(error).__name__)
            finally:
                self._forget()
            await asyncio.sleep(SECONDS_BETWEEN_TRIES)

    async def _begun(self, connection: AsyncConnection) -> None:
        """Mark in Redis what may have changed while nobody listened."""
        recent = sa.text(
            "select id, version from users where version > 1"
            " and updated_at > now() - make_interval(secs => :seconds)"
        )
        rows = await connection.execute(recent, {"seconds": SECONDS_IN_REDIS + 60})
        for row in rows:
            await self._mark(row.id, row.version)
        self._told = True

    def _hear(self, _connection: object, _pid: int, _channel: str, told: str) -> None:
        user_id, version = map(int, told.split())
        _trim(self._least)
        self._least[user_id] = max(version, self._least.get(user_id, 0))
        held = self._held.get(user_id)
        if held and held[0].version < version:
            del self._held[user_id]
        task = self._loop.create_task(self._mark(user_id, version))
        task.add_done_callback(lambda _: None)

    async def _mark(self, user_id: int, version: int) -> None:
        with suppress(RedisError, OSError):
            await self._put(keys=[_key(user_id)], args=[version, "", SECONDS_MARKED])

    def _forget(self) -> None:
        self._told = False
        self._held.clear()
        self._least.clear()


class CachedUsers(PostgresUsers):
    """Keeps accounts in Postgres, and gives them by id from the cache."""

    def __init__(self, database: Database, redis: Redis, feed: RevocationFeed) -> None:
        super().__init__(database, feed)
        self.cache = UserCache(database, redis, super().by_id)

    async def by_id(self, user_id: int) -> User | None:
        """Give the account with this id."""
        return await self.cache.by_id(user_id)

    async def edit(
        self,
        user_id: int,
        edit: UserEdit,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        """Change an account; this process sees it at once."""
        user = await super().edit(user_id, edit, idempotency)
        self.cache.keep(user)
        return user

    async def delete(self, user_id: int, now: datetime) -> None:
        """Delete an account; this process sees it at once."""
        await super().delete(user_id, now)
        self.cache.drop(user_id)


def _key(user_id: int) -> str:
    return f"user:{{{user_id}}}"


def _trim(table: dict[int, Any]) -> None:
    """Keep a table within bounds; the oldest entry goes."""
    if len(table) >= MOST:
        del table[next(iter(table))]


def _user(raw: bytes | str) -> User:
    found = orjson.loads(raw)
    for name in ("created_at", "updated_at"):
        found[name] = datetime.fromisoformat(found[name])
    return User(**found | {"role": Role(found["role"])})
