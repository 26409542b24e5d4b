"""A Redis client that is skipped while Redis does not answer, or answers slowly.

What Redis holds may be lost: no call waits for it longer than a tenth of a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import PubSub
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
from server.store.redis.pipelining_redis import PipeliningRedis

TIMEOUT_SECONDS = 0.1
SLOW_SECONDS = 0.05
MAX_SLOW_REPLIES = 3  # in a row
_OUTAGES = (OutOfMemoryError, ReadOnlyError, ClusterDownError)
_PROBE_KEY = "rate:{probe}"
_PROBE_TTL_SECONDS = 1
_PROBE_ATTEMPTS = 3
_PROBE_TIMEOUT_SECONDS = 0.1
_PROBE_SCRIPT = "return redis.call('set', KEYS[1], '', 'ex', ARGV[1])"
_Key = TypeVar("_Key")


class RedisUnavailable(RedisConnectionError):
    """Redis did not answer lately; no command was sent."""


class SlowRedis(RedisError):
    """Redis answered, but so late that callers had better not wait for it."""


class GuardedRedis(PipeliningRedis):
    """Raises RedisUnavailable without I/O while the circuit breaker is open.

    Subscriptions and probes use the background pool, whose connections no call waits
    for. `name` is for the log. Both pools are closed with the client.
    """

    def __init__(
        self, pool: ConnectionPool, background: ConnectionPool, name: str = "redis"
    ) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        self.background = Redis.from_pool(background)
        self.name = name
        self.probe_key = _PROBE_KEY  # a node of a cluster stores only some keys
        self._breaker = CircuitBreaker(name, self.probe)
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
            if not is_caused_by_command(error):
                self._breaker.suspect()
            raise
        self._record_duration(loop.time() - started_at)
        return reply

    async def execute_asking(self, *args: Any, **options: Any) -> Any:
        """Execute a command about a slot that this node of a cluster is importing.

        Raises RedisError, OSError.
        """
        pipeline = self.pipeline(transaction=False)
        pipeline.execute_command("ASKING")
        pipeline.execute_command(*args, **options)
        _, reply = await pipeline.execute(raise_on_error=False)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _record_duration(self, seconds: float) -> None:
        """Probe Redis after several slow replies."""
        self._slow_replies = self._slow_replies + 1 if seconds > SLOW_SECONDS else 0
        if self._slow_replies >= MAX_SLOW_REPLIES:
            self._slow_replies = 0
            self._breaker.suspect()

    async def probe(self) -> None:
        """Write a key; the fastest of several replies must be fast.

        A server that is full or read-only answers reads, hence a write. Other replies
        may be slow because of a new connection. Raises RedisError, OSError.
        """
        durations = []
        for _ in range(_PROBE_ATTEMPTS):
            writing = self.background.set(self.probe_key, "", ex=_PROBE_TTL_SECONDS)
            durations.append(await answer_time(writing, _PROBE_TIMEOUT_SECONDS))
        if min(durations) > SLOW_SECONDS:
            raise SlowRedis(f"replies take {min(durations):.3f} s")

    async def try_commands(self) -> None:
        """Write a key and run a script, as calls do. Raises RedisError, OSError.

        Sentinels answer PING, a replica and an account without rights may, too.
        """
        await self.probe()
        script = self.background.register_script(_PROBE_SCRIPT)
        running = script(keys=[self.probe_key], args=[_PROBE_TTL_SECONDS])
        await answer_time(running, _PROBE_TIMEOUT_SECONDS)

    async def cluster_slots(self) -> Sequence[Any]:
        """Return which nodes of its cluster have which slots, as this one knows it.

        On a connection that no call waits for. Raises RedisError, OSError.
        """
        reading: Any = self.background.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
        reply: Sequence[Any] = await reading
        return reply

    async def ping_nodes(self) -> Mapping[str, Exception | None]:
        """Return what the server fails with, None if it serves what calls need."""
        return await outcomes_of({self.name: self.try_commands()})

    def pubsub(self, **options: Any) -> PubSub:
        """Return a subscription."""
        return self.background.pubsub(**options)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close every connection and stop probing."""
        await self._breaker.close()
        await self.background.aclose()
        await super().aclose(close_connection_pool)


async def outcomes_of(
    requests: Mapping[_Key, Awaitable[object]],
) -> dict[_Key, Exception | None]:
    """Wait for all requests; return what each failed with, None if it succeeded."""
    results = await asyncio.gather(*requests.values(), return_exceptions=True)
    return {
        key: result if isinstance(result, Exception) else None
        for key, result in zip(requests, results, strict=True)
    }


def is_caused_by_command(error: Exception) -> bool:
    """Return whether Redis works and refused only this command, as NOSCRIPT does."""
    if not isinstance(error, ResponseError) or isinstance(error, _OUTAGES):
        return False
    return not str(error).startswith("MISCONF")
