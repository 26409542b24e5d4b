"""grpc.health.v1, and readiness: SERVING while Postgres answers and nobody drains."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

log = structlog.get_logger()
SECONDS_BETWEEN_PINGS = 1.0
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Tells whether this process can serve."""

    name = health.SERVICE_NAME

    def __init__(
        self,
        ping: Callable[[], Awaitable[None]],
        services: Sequence[str],
        lame_duck: timedelta,
        *drained: Callable[[], None],
    ) -> None:
        self._ping = ping
        self._lame_duck = lame_duck
        self._drained = drained
        self._services = ("", *services)
        self._servicer = health.aio.HealthServicer()
        self.serving = False
        self._draining = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve grpc.health.v1.Health."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def ready(self) -> bool:
        """Tell whether calls should be sent here."""
        return self.serving

    async def run(self) -> None:
        """Ask Postgres every second, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(SECONDS_BETWEEN_PINGS)

    async def refresh(self) -> None:
        """Ask Postgres once, and tell those who watch."""
        try:
            await self._ping()
        except Exception as error:
            log.warning(
                "postgres does not answer", cause=repr(error.__cause__ or error)
            )
            await self._tell(False)
        else:
            await self._tell(True)

    async def drain(self) -> None:
        """Send callers elsewhere, for good, and give them a while to hear of it.

        Then end what has no end of its own: who comes back is sent elsewhere.
        """
        self.serving, self._draining = False, True
        await self._servicer.enter_graceful_shutdown()
        await asyncio.sleep(self._lame_duck.total_seconds())
        for end in self._drained:
            end()

    async def _tell(self, serving: bool) -> None:
        if serving is self.serving or self._draining:
            return
        self.serving = serving
        log.info("serving" if serving else "not serving")
        for service in self._services:
            await self._servicer.set(service, _SERVING if serving else _NOT_SERVING)


def remote_readiness(channel: grpc.aio.Channel) -> Callable[[], Awaitable[bool]]:
    """Give what tells whether the server at the other end can serve."""
    stub: Any = health_pb2_grpc.HealthStub(channel)

    async def ready() -> bool:
        try:
            request = health_pb2.HealthCheckRequest()
            answer = await stub.Check(request, timeout=SECONDS_BETWEEN_PINGS)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == _SERVING)

    return ready
