"""A Redis client that is skipped while Redis does not answer, or answers slowly.

What Redis holds may be lost: no call waits for it longer than a tenth of a second.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from server.store.connections.answers import answer_time
from server.store.connections.circuit_breaker import CircuitBreaker
from server.store.connections.pipelining_redis import PipeliningRedis

TIMEOUT_SECONDS = 0.1
SLOW_SECONDS = 0.05
MAX_SLOW_REPLIES = 3  # in a row
_OUTAGES = (OutOfMemoryError, ReadOnlyError, ClusterDownError)
_PROBE_KEY = "rate:{probe}"
_PROBE_TTL_SECONDS = 1
_PROBE_ATTEMPTS = 3
_PROBE_TIMEOUT_SECONDS = 0.1
# Of connections that no call waits for. At start this process may be busy for a second.
_BACKGROUND_TIMEOUT_SECONDS = 5.0


class RedisUnavailable(RedisConnectionError):
    """Redis did not answer lately; no command was sent."""


class SlowRedis(RedisError):
    """Redis answered, but so late that callers had better not wait for it."""


class GuardedRedis(PipeliningRedis):
    """Raises RedisUnavailable without I/O while the circuit breaker is open.

    Subscriptions and probes have their own connections, which no call waits for.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._background = _with_timeout(self, _BACKGROUND_TIMEOUT_SECONDS)
        self._breaker = CircuitBreaker("redis", self._probe)
        self._slow_replies = 0

    @property
    def is_degraded(self) -> bool:
        """Whether commands are refused, because Redis does not answer."""
        return self._breaker.is_open

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command. Raises RedisError, OSError."""
        if cause := self._breaker.cause:
            raise RedisUnavailable(type(cause).__name__)
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        try:
            reply = await super().execute_command(*args, **options)
        except (RedisError, OSError) as error:
            if not _is_caused_by_command(error):
                self._breaker.suspect()
            raise
        self._record_duration(loop.time() - started_at)
        return reply

    def _record_duration(self, seconds: float) -> None:
        """Probe Redis after several slow replies."""
        self._slow_replies = self._slow_replies + 1 if seconds > SLOW_SECONDS else 0
        if self._slow_replies >= MAX_SLOW_REPLIES:
            self._slow_replies = 0
            self._breaker.suspect()

    async def _probe(self) -> None:
        """Write a key; the fastest of several replies must be fast.

        A server that is full or read-only answers reads, hence a write. Other replies
        may be slow because of a new connection.
        """
        durations = []
        for _ in range(_PROBE_ATTEMPTS):
            writing = self._background.set(_PROBE_KEY, "", ex=_PROBE_TTL_SECONDS)
            durations.append(await answer_time(writing, _PROBE_TIMEOUT_SECONDS))
        if min(durations) > SLOW_SECONDS:
            raise SlowRedis(f"replies take {min(durations):.3f} s")

    def pubsub(self, **options: Any) -> PubSub:
        """Return a subscription."""
        return self._background.pubsub(**options)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close every connection and stop probing."""
        await self._breaker.close()
        await self._background.aclose()
        await super().aclose(close_connection_pool)


def _is_caused_by_command(error: Exception) -> bool:
    """Return whether Redis works and refused only this command, as NOSCRIPT does."""
    if not isinstance(error, ResponseError) or isinstance(error, _OUTAGES):
        return False
    return not str(error).startswith("MISCONF")


def _with_timeout(redis: Redis, seconds: float) -> Redis:
    """Return a client of the same server with another timeout."""
    pool = redis.connection_pool
    options = pool.connection_kwargs | {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
    }
    return Redis.from_pool(ConnectionPool(pool.connection_class, **options))


def redis_client(url: str) -> GuardedRedis:
    """Return a client that answers or fails within a tenth of a second.

    What Redis holds may be lost: no call waits for it, no command is retried.
    """
    client = GuardedRedis.from_url(
        url,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    assert isinstance(client, GuardedRedis)  # noqa: S101
    return client
