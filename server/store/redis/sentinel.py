"""Connections to the primary that Sentinels name, which may change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis, SSLConnection
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
)
from redis.exceptions import RedisError
from redis.utils import str_if_bytes

from server.store.redis.guarded_redis import GuardedRedis, outcomes_of
from server.store.redis.redis_url import Node


class UnknownService(MasterNotFoundError):
    """A Sentinel answers, but watches no service of this name."""


class Sentinels(Sentinel):
    """Asks all Sentinels at once: one that does not answer delays nobody."""

    async def discover_master(self, service_name: str) -> Node:
        """Return the address of the primary. Raises MasterNotFoundError."""
        asking = [
            asyncio.ensure_future(_ask(sentinel, service_name))
            for sentinel in self.sentinels
        ]
        try:
            for reply in asyncio.as_completed(asking):
                with suppress(RedisError, OSError):
                    return await reply
            raise MasterNotFoundError(f"no Sentinel knows {service_name}")
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


async def _ask(sentinel: Redis, service: str) -> Node:
    """Return the address of the primary. Raises UnknownService, RedisError, OSError."""
    command = ("SENTINEL GET-MASTER-ADDR-BY-NAME", service)
    address = await sentinel.execute_command(*command)  # type: ignore[no-untyped-call]
    if not address:
        raise UnknownService(f"a Sentinel knows no {service}")
    return str_if_bytes(address[0]), int(address[1])


class _PrimaryConnection(SentinelManagedConnection):
    async def connect(self) -> None:
        """Ask for the address, and connect, within the timeout of connecting."""
        if not self.is_connected:
            async with asyncio.timeout(self.socket_connect_timeout):
                await super().connect()  # type: ignore[no-untyped-call]


class _SecurePrimaryConnection(_PrimaryConnection, SSLConnection):
    pass


def primary_pool(
    sentinels: Sentinels, service: str, options: Mapping[str, Any]
) -> SentinelConnectionPool:
    """Return a pool of connections to the primary of a service."""
    is_secure = options.get("connection_class") is SSLConnection
    connection = _SecurePrimaryConnection if is_secure else _PrimaryConnection
    options = {**options, "connection_class": connection}
    return SentinelConnectionPool(service, sentinels, **options)  # type: ignore[no-untyped-call]


class GuardedPrimary(GuardedRedis):
    """A GuardedRedis of the primary. The Sentinels are closed with the client."""

    def __init__(
        self,
        pool: SentinelConnectionPool,
        background: SentinelConnectionPool,
        sentinels: Sentinels,
    ) -> None:
        super().__init__(pool, background)
        self._sentinels = sentinels
        self._service: str = pool.service_name

    async def ping_nodes(self) -> Mapping[str, Exception | None]:
        """Return what the primary and each Sentinel fail with, None if it serves.

        UnknownService is what a Sentinel fails with that knows no such service.
        """
        requests: dict[str, Awaitable[object]] = {"the primary": self.try_commands()}
        for sentinel in self._sentinels.sentinels:
            options = sentinel.connection_pool.connection_kwargs
            name = f"Sentinel {options['host']}:{options['port']}"
            requests[name] = _ask(sentinel, self._service)
        return await outcomes_of(requests)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close every connection and stop probing."""
        await super().aclose(close_connection_pool)
        await self._sentinels.aclose()
