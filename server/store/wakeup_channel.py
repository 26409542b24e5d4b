"""Hints between processes that there is something to read in Postgres, by Redis.

A lost hint costs as long as the reader waits without one.
"""

from __future__ import annotations

import asyncio

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

log = structlog.get_logger()
SECONDS_BETWEEN_TRIES = 0.5


class WakeupChannel:
    """The hints of one channel."""

    def __init__(self, redis: Redis, channel: str) -> None:
        self._redis = redis
        self._channel = channel
        self._received = asyncio.Event()

    async def publish(self) -> None:
        """Hint to every process, this one included."""
        self._received.set()
        try:
            await self._redis.publish(self._channel, b"")
        except (RedisError, OSError):
            log.debug("wakeup message not published", channel=self._channel)

    async def wait(self, seconds: float) -> None:
        """Wait for a hint, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._received.wait()
        except TimeoutError:
            return
        self._received.clear()

    async def listen(self) -> None:
        """Take the other processes' hints, until cancelled."""
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(self._channel)
                    await self._relay(channel)
            except (RedisError, OSError):
                await asyncio.sleep(SECONDS_BETWEEN_TRIES)

    async def _relay(self, channel: PubSub) -> None:
        while True:
            wait = SECONDS_BETWEEN_TRIES
            if await channel.get_message(ignore_subscribe_messages=True, timeout=wait):
                self._received.set()
