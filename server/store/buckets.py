"""Rate windows in Redis, and in this process while Redis is away.

One script, one round trip: it looks at every bucket, and counts the call in all
of them or in none. A bucket is a list of the times of its last `limit` calls,
newest first, by the clock of Redis: when the oldest of them is younger than the
window, the window is full. Exact, at the cost of 8 bytes a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from hashlib import blake2b

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from server.domain.limits import Bucket, Limiter, Refusal

log = structlog.get_logger()
SECONDS_WITHOUT_REDIS = 1.0
MICROSECOND = timedelta(microseconds=1)

# KEYS: the buckets. ARGV: limit and window in microseconds of each.
# Gives the index from 1 and the wait of the refusal that lasts longest, or 0, 0.
_TAKE = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local which, longest = 0, 0
for i, key in ipairs(KEYS) do
  local limit, per = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local oldest = redis.call('LINDEX', key, limit - 1)
  if oldest and oldest + per > now and oldest + per - now > longest then
    which, longest = i, oldest + per - now
  end
end
if which == 0 then
  for i, key in ipairs(KEYS) do
    local limit, per = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
    redis.call('LPUSH', key, string.format('%.0f', now))
    redis.call('LTRIM', key, 0, limit - 1)
    redis.call('PEXPIRE', key, math.ceil(per / 1000))
  end
end
return {which, longest}
"""


class RedisBuckets:
    """A Limiter over Redis. After a failure Redis is left alone for a second."""

    def __init__(self, redis: Redis, local: Limiter) -> None:
        self._script = redis.register_script(_TAKE)
        self._local = local
        self._away_until = 0.0

    @property
    def degraded(self) -> bool:
        """Whether limits hold per process at present."""
        return self._away_until > asyncio.get_running_loop().time()

    async def take(self, buckets: Sequence[Bucket]) -> Refusal | None:
        """Count one call in every bucket, or give the refusal that lasts longest."""
        if self.degraded:
            return await self._local.take(buckets)
        try:
            return await self._take(buckets)
        except (RedisError, OSError) as error:
            self._away_until = asyncio.get_running_loop().time() + SECONDS_WITHOUT_REDIS
            log.warning("limits hold per process", cause=type(error).__name__)
            return await self._local.take(buckets)

    async def _take(self, buckets: Sequence[Bucket]) -> Refusal | None:
        keys = [_key(bucket) for bucket in buckets]
        numbers = [
            number
            for bucket in buckets
            for number in (bucket.window.limit, bucket.window.per // MICROSECOND)
        ]
        which, wait = await self._script(keys=keys, args=numbers)
        if not which:
            return None
        return Refusal(buckets[which - 1].window, int(wait) * MICROSECOND)


def _key(bucket: Bucket) -> str:
    """Give the key; the braces keep one call's buckets on one node of a cluster.

    What people typed is hashed: it may be a password in the wrong field.
    """
    window = f"{bucket.window.limit}/{bucket.window.per.total_seconds():g}"
    counted = blake2b(bucket.key.encode(), digest_size=16).hexdigest()
    return f"rate:{{{bucket.scope}}}:{window}:{counted}"
