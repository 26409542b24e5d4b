"""grpc.health.v1.Health, whose Watch streams are bounded and wait for nobody.

grpc's own servicer writes to a client under the lock that a new status needs: one
client that does not read would keep every status as it is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

MAX_WATCHES = 8_192  # in all: one for each connection
MAX_WATCHES_PER_CONNECTION = 16
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers with the status of each service, a ServingStatus."""

    def __init__(self, services: Iterable[str], status: Any) -> None:
        self._statuses = dict.fromkeys(services, status)
        self._changed = asyncio.Event()  # a new one for each change
        self._by_connection: Counter[str] = Counter()
        self._watches: set[asyncio.Timeout] = set()
        self._ended = False

    def publish(self, status: Any) -> None:
        """Give every service this status, and send it to those who watch."""
        self._statuses = dict.fromkeys(self._statuses, status)
        self._changed.set()
        self._changed = asyncio.Event()

    def end_watches(self) -> None:
        """End the present streams, and new ones at once."""
        self._ended = True
        for watch in self._watches:
            watch.reschedule(asyncio.get_running_loop().time())

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the RPC
        """Return the status of a service."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the RPC
        """Send the status and its changes, until `end_watches`."""
        peer = context.peer()
        if (
            len(self._watches) >= MAX_WATCHES
            or self._by_connection[peer] >= MAX_WATCHES_PER_CONNECTION
        ):
            message = "too many Watch streams: close one, or call Check"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        self._by_connection[peer] += 1
        try:
            await self._watch(request.service, context)
        finally:
            self._by_connection[peer] -= 1
            if not self._by_connection[peer]:
                del self._by_connection[peer]
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    async def _watch(self, service: str, context: Any) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as watch:
                self._watches.add(watch)
                try:
                    await self._send_changes(service, context)
                finally:
                    self._watches.discard(watch)

    async def _send_changes(self, service: str, context: Any) -> None:
        sent = None
        while not self._ended:
            changed = self._changed
            status = self._statuses.get(service, _UNKNOWN)
            if status != sent:
                await context.write(health_pb2.HealthCheckResponse(status=status))
            sent = status
            await changed.wait()
