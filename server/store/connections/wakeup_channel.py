"""WakeupChannel: Redis messages that tell other processes to read Postgres again.

Messages carry nothing and may be lost: readers poll as well, only later.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from server.domain.errors import StoreUnavailable

log = structlog.get_logger()
READ_TIMEOUT_SECONDS = 0.5


class WakeupChannel:
    """One Redis channel; `wake` is set by each message on it."""

    def __init__(self, redis: Redis, channel: str) -> None:
        self._redis = redis
        self._channel = channel
        self.wake = asyncio.Event()

    async def publish(self) -> None:
        """Wake every process, this one included; without Redis, this one only."""
        self.wake.set()
        try:
            await self._redis.publish(self._channel, b"")
        except (RedisError, OSError):
            log.debug("wake-up message not published", channel=self._channel)

    async def listen(self) -> NoReturn:
        """Receive messages until the connection is lost. Raises StoreUnavailable."""
        try:
            async with self._redis.pubsub() as subscription:
                await subscription.subscribe(self._channel)
                while True:
                    if await subscription.get_message(
                        ignore_subscribe_messages=True, timeout=READ_TIMEOUT_SECONDS
                    ):
                        self.wake.set()
        except (RedisError, OSError) as error:
            raise StoreUnavailable from error
