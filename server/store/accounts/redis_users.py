"""Accounts in Redis, which all processes share.

Each has a version, also one that was invalidated: a script refuses an older one, so
that a slow reader cannot put it back.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from server.domain.accounts.users import Role, User
from server.store.accounts.new_versions import NewVersion

REDIS_TTL_SECONDS = 3600
INVALIDATION_TTL_SECONDS = 60  # far longer than any read takes
PIPELINE_SIZE = 500
CLEAR_BATCH_SIZE = 500

# KEYS: the account's. ARGV: version, value ("" to invalidate), TTL in seconds.
_PUT_IF_NEWER = """
local cached = redis.call('HGET', KEYS[1], 'version')
if cached and tonumber(cached) > tonumber(ARGV[1]) then return 0 end
if cached == ARGV[1] and ARGV[2] == '' then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'user', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""


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


class RedisUsers:
    """Stores accounts for an hour. Without Redis there are none."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._put = redis.register_script(_PUT_IF_NEWER)

    async def get(self, user_id: int) -> User | None:
        """Return the account with this id, if Redis holds it."""
        with suppress(RedisError, OSError):
            raw = await self._redis.hget(cache_key(user_id), "user")
            return _decode(raw) if raw else None
        return None

    async def put(self, user: User) -> None:
        """Store an account, unless Redis has a newer version."""
        seconds = int(REDIS_TTL_SECONDS * random.uniform(0.9, 1.0))  # noqa: S311 - jitter
        with suppress(RedisError, OSError):
            await self._put(
                keys=[cache_key(user.id)],
                args=[user.version, orjson.dumps(asdict(user)), seconds],
            )

    async def invalidate(self, user_id: int, version: int) -> None:
        """Remove what is older than a version. Raises RedisError, OSError."""
        ttl = INVALIDATION_TTL_SECONDS
        await self._put(keys=[cache_key(user_id)], args=[version, "", ttl])

    async def invalidate_all(self, versions: Sequence[NewVersion]) -> None:
        """Remove what is older than these versions, as far as Redis is available."""
        for start in range(0, len(versions), PIPELINE_SIZE):
            part = versions[start : start + PIPELINE_SIZE]
            await asyncio.gather(
                *(self.invalidate(*version) for version in part),
                return_exceptions=True,
            )


def cache_key(user_id: int) -> str:
    """Return the key of an account."""
    # the braces are a hash tag: a cluster keeps all keys of an account on one node
    return f"user:{{{user_id}}}:{_SHAPE}"


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


async def clear_cached_users(redis: Redis) -> None:
    """Remove every account from Redis. Raises RedisError, OSError."""
    batch: list[str | bytes] = []
    async for key in redis.scan_iter(match="user:{*", count=CLEAR_BATCH_SIZE):
        batch.append(key)
        if len(batch) == CLEAR_BATCH_SIZE:
            await asyncio.gather(*map(redis.unlink, batch))
            batch.clear()
    await asyncio.gather(*map(redis.unlink, batch))
