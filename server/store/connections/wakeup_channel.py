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
        self._publishing: asyncio.Task[None] | None = None
        self._publish_again = False
        self.wake = asyncio.Event()
        self.is_subscribed = False

    def publish(self) -> None:
        """Wake every process in the background; without Redis, this one only.

        Calls during a publication are merged into one more.
        """
        self._publish_again = True
        if self._publishing is None:
            self._publishing = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        is_published = False
        try:
            while self._publish_again:
                self._publish_again = False
                await self._redis.publish(self._channel, b"")
            is_published = True
        except (RedisError, OSError):
            log.debug("wake-up message not published", channel=self._channel)
        finally:
            self._publishing = None
            if not (is_published and self.is_subscribed):
                self.wake.set()  # no message of its own reaches this process

    async def listen(self) -> NoReturn:
        """Receive messages until the connection is lost. Raises StoreUnavailable."""
        try:
            async with self._redis.pubsub() as subscription:
                await subscription.subscribe(self._channel)
                self.is_subscribed = True
                while True:
                    if await subscription.get_message(
                        ignore_subscribe_messages=True, timeout=READ_TIMEOUT_SECONDS
                    ):
                        self.wake.set()
        except (RedisError, OSError) as error:
            raise StoreUnavailable from error
        finally:
            self.is_subscribed = False
