"""Service: the application of one process with its listeners, and how it drains."""

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from server.composition.application import Application, build_application
from server.composition.listeners import serving, stopping
from server.composition.listeners.http_server import HttpServer
from server.composition.listeners.limits import http_protocol
from server.composition.listeners.metrics import listening_metrics
from server.composition.listeners.sockets import bound_address, with_port
from server.composition.resources import open_resources
from server.composition.tls import open_listener_tls
from server.composition.tls.metrics import tls_families
from server.config import ConfigurationError, Settings
from server.store import migrate
from server.store.connections.connect import Database
from server.workers.supervisor import supervise


@dataclass(frozen=True, slots=True)
class Service:
    """A running service; the addresses have the ports that are bound."""

    application: Application
    http: HttpServer
    grpc_address: str
    http_address: str

    async def drain(self, lame_duck: timedelta, *, replaced: bool = False) -> None:
        """Send clients to other processes, then end the streams. See DrainCalls."""
        self.http.close_connections()
        await self.application.drain(lame_duck, replaced=replaced)


@asynccontextmanager
async def running_service(
    settings: Settings,
    listener: socket.socket,
    *,
    migrated: bool,
    call_counts: Path | None = None,
) -> AsyncIterator[Service]:
    """Serve gRPC on GRPC_LISTEN and HTTP on a bound socket while the block runs.

    Unless it was `migrated` just now, the schema is checked before calls are served.
    `call_counts` is a file that keeps the counts of calls beyond this process.
    HTTP is bound first: links in e-mails may contain its port.
    """
    tls = open_listener_tls(settings)
    http_address = bound_address(settings.http_listen, listener)
    settings = settings.model_copy(update={"http_listen": http_address})
    async with (
        open_resources(settings, call_counts) as resources,
        build_application(
            resources,
            *([] if migrated else [partial(_check_schema, resources.database)]),
        ) as application,
        supervise(*tls.tasks()),
        listening_metrics(settings.metrics_listen, application.render_metrics),
        stopping.stopping_together(
            serving.listening_grpc(
                application.grpc, settings.grpc_listen, tls.server_credentials
            ),
            serving.listening_http(
                application.http,
                listener,
                http_protocol(settings, resources.metrics.edge.requests.observe),
                settings.http_keep_alive,
                tls.ssl_context,
            ),
        ) as (grpc_port, http),
    ):
        resources.metrics.edge.others.append(partial(tls_families, tls, application))
        gc.collect()
        gc.freeze()  # skip long-lived objects: saves 12 of 74 us per request
        grpc_address = with_port(settings.grpc_listen, grpc_port)
        try:
            yield Service(application, http, grpc_address, http_address)
        finally:
            gc.unfreeze()


async def _check_schema(database: Database) -> None:
    """Raise ConfigurationError if the schema is older than this release."""
    if await migrate.is_behind(database):
        raise ConfigurationError(
            "the database schema is older than this release: run academy migrate"
        )
