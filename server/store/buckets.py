"""Rate windows in Redis, and in this process while Redis is unavailable.

One script, one round trip: it reads every bucket, and counts the call in all of them
or in none. A bucket is a list of the times of its last `limit` calls, the newest first,
by the clock of Redis. When the oldest of them is younger than the window, the window is
full. Exact, at the cost of 8 bytes per call.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from hashlib import blake2b

from redis.exceptions import RedisError

from server.domain.limits import Bucket, Limiter, Refusal
from server.store.redis.redis_client import RedisClient

MICROSECOND = timedelta(microseconds=1)

# KEYS: the buckets. ARGV: for each its limit and its window in microseconds.
# Returns the index, from 1, and the wait of the refusal that lasts longest, or 0, 0.
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
    """A Limiter over Redis; `local` counts the calls that Redis does not."""

    def __init__(self, redis: RedisClient, local: Limiter) -> None:
        self._redis = redis
        self._script = redis.register_script(_TAKE)
        self._local = local

    @property
    def is_degraded(self) -> bool:
        """Whether limits hold per process only, at present."""
        return self._redis.is_degraded

    async def take(self, buckets: Sequence[Bucket]) -> Refusal | None:
        """Count one call in every bucket, or return the refusal that lasts longest."""
        try:
            return await self._take(buckets)
        except (RedisError, OSError):
            return await self._local.take(buckets)

    async def _take(self, buckets: Sequence[Bucket]) -> Refusal | None:
        keys = [_key(bucket) for bucket in buckets]
        numbers = [
            number
            for bucket in buckets
            for number in (bucket.window.limit, bucket.window.per // MICROSECOND)
        ]
        index, wait = await self._script(keys=keys, args=numbers)
        if not index:
            return None
        return Refusal(buckets[index - 1].window, int(wait) * MICROSECOND)


def _key(bucket: Bucket) -> str:
    """Return the key; its hash tag keeps one call's buckets on one cluster node.

    The counted text is hashed: it may be a password typed into the wrong field.
    """
    window = f"{bucket.window.limit}/{bucket.window.per.total_seconds():g}"
    digest = blake2b(bucket.key.encode(), digest_size=16).hexdigest()
    return f"rate:{{{bucket.scope}}}:{window}:{digest}"
