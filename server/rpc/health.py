"""grpc.health.v1 and readiness: SERVING while Postgres answers, until draining."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

log = structlog.get_logger()
POLL_INTERVAL = timedelta(seconds=1)
REMOTE_TIMEOUT_SECONDS = 1.0
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class _HealthServicer(health.aio.HealthServicer):
    """grpc's servicer, with Watch streams that end when the process stops."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Timeout] = set()
        self._ended = False

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the RPC
        """Send the status and its changes, until `end_watches`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as watch:
                self._watches.add(watch)
                try:
                    if not self._ended:
                        await super().Watch(request, context)
                finally:
                    self._watches.discard(watch)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    def end_watches(self) -> None:
        """End the present streams, and new ones at once."""
        self._ended = True
        for watch in self._watches:
            watch.reschedule(asyncio.get_running_loop().time())


class Health:
    """The health of this process, for load balancers and orchestrators."""

    name = health.SERVICE_NAME

    def __init__(
        self,
        ping: Callable[[], Awaitable[None]],
        services: Sequence[str],
    ) -> None:
        self._ping = ping
        self._services = ("", *services)
        self._servicer = _HealthServicer()
        self.serving = False
        self._draining = False
        self._outage_logged = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve grpc.health.v1.Health."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        """Publish NOT_SERVING: grpc's servicer begins with SERVING."""
        for service in self._services:
            await self._servicer.set(service, _NOT_SERVING)

    async def ready(self) -> bool:
        """Return whether calls should be sent to this process."""
        return self.serving

    async def refresh(self) -> None:
        """Ping Postgres and publish the result; log an outage once."""
        try:
            await self._ping()
        except Exception as error:
            if not self._outage_logged:
                cause = repr(error.__cause__ or error)
                log.warning("postgres does not respond", cause=cause)
            self._outage_logged = True
            await self._publish(False)
        else:
            self._outage_logged = False
            await self._publish(True)

    async def drain(self) -> None:
        """Publish NOT_SERVING for good."""
        self.serving, self._draining = False, True
        await self._servicer.enter_graceful_shutdown()

    async def end_watches(self) -> None:
        """End the Watch streams, which would delay the end of the server."""
        self._servicer.end_watches()

    async def _publish(self, serving: bool) -> None:
        if serving is self.serving or self._draining:
            return
        self.serving = serving
        log.info("serving" if serving else "not serving")
        for service in self._services:
            await self._servicer.set(service, _SERVING if serving else _NOT_SERVING)


def remote_readiness(channel: grpc.aio.Channel) -> Callable[[], Awaitable[bool]]:
    """Return a function that checks whether the server behind a channel is SERVING."""
    stub: Any = health_pb2_grpc.HealthStub(channel)

    async def ready() -> bool:
        try:
            request = health_pb2.HealthCheckRequest()
            response = await stub.Check(request, timeout=REMOTE_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(response.status == _SERVING)

    return ready
