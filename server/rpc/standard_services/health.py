"""grpc.health.v1 and readiness: SERVING while Postgres answers, until draining."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from server.rpc.standard_services.health_servicer import HealthServicer

log = structlog.get_logger()
POLL_INTERVAL = timedelta(seconds=1)
REMOTE_TIMEOUT_SECONDS = 1.0
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The health of this process, for load balancers and orchestrators."""

    name = health.SERVICE_NAME

    def __init__(
        self,
        ping: Callable[[], Awaitable[None]],
        services: Sequence[str],
    ) -> None:
        self._ping = ping
        self._servicer = HealthServicer(("", *services), _NOT_SERVING)
        self.serving = False
        self._draining = False
        self._outage_logged = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve grpc.health.v1.Health."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

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
            self._publish(serving=False)
        else:
            self._outage_logged = False
            self._publish(serving=True)

    async def drain(self) -> None:
        """Publish NOT_SERVING for good."""
        self.serving, self._draining = False, True
        self._servicer.publish(_NOT_SERVING)

    async def end_watches(self) -> None:
        """End the Watch streams, which would delay the end of the server."""
        self._servicer.end_watches()

    def _publish(self, *, serving: bool) -> None:
        if serving is self.serving or self._draining:
            return
        self.serving = serving
        log.info("serving" if serving else "not serving")
        self._servicer.publish(_SERVING if serving else _NOT_SERVING)


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
