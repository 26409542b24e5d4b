"""`academy up`, `serve` and `edge`: the commands that run until they are stopped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import structlog
import typer
import uvloop

from server.cli.database import open_database
from server.cli.terminal import load_settings, report_errors, run_async
from server.composition.accounts import open_erasure_log
from server.composition.edge.app import remote_edge
from server.composition.edge.upstream import connected_upstream
from server.composition.listeners import serving, stopping
from server.composition.listeners.limits import http_protocol
from server.composition.listeners.metrics import listening_metrics
from server.composition.listeners.service import running_service
from server.composition.listeners.sockets import bind_http, bound_address
from server.composition.tls import open_listener_tls
from server.composition.tls.metrics import certificate_families
from server.composition.tls.settings import listener_credentials, upstream_credentials
from server.composition.tracing import open_tracing
from server.config import Settings
from server.config_addresses import check_server_address
from server.domain.clock import system_clock
from server.observability.metrics.process import EdgeMetrics
from server.store import migrate
from server.workers.event_loop_monitor import EventLoopMonitor
from server.workers.supervisor import supervise

log = structlog.get_logger()


def up() -> None:
    """Serve gRPC and REST; start Postgres and Valkey unless their URLs are set.

    The URLs are DATABASE_URL and REDIS_URL.
    """
    settings = load_settings(local=True)
    if settings.workers > 1:
        _become_supervisor("up", settings)
    # Not at the top: the embedded servers are an extra, which `serve` does without.
    from server.cli.embedded import embedded_servers, print_banner
    from server.embedded.processes import EmbeddedServerError

    with report_errors(settings, expected=(EmbeddedServerError,)):
        listener_credentials(settings)  # before Postgres is started
        # embedded Postgres has no other processes, so none of the release before
        is_embedded = settings.database_url is None
        with embedded_servers(settings) as (settings, servers):
            announce = partial(print_banner, settings)
            uvloop.run(_up(settings, announce, servers.check, is_embedded=is_embedded))


async def _up(
    settings: Settings,
    announce: Callable[[str, str], None],
    check_servers: Callable[[], None],
    *,
    is_embedded: bool,
) -> None:
    await migrate.upgrade(open_database(settings), after_rollout=is_embedded)
    with bind_http(settings.http_listen) as listener:
        async with running_service(settings, listener, migrated=True) as service:
            announce(service.grpc_address, service.http_address)

            def check() -> None:
                check_servers()
                service.application.check()

            await stopping.until_stopped(check)
            await service.drain(settings.lame_duck)


def serve() -> None:
    """Serve gRPC and REST with the servers of DATABASE_URL and REDIS_URL."""
    settings = load_settings("database_url", "redis_url", "secret_key")
    if settings.workers > 1:
        _become_supervisor("serve", settings)
    run_async(_serve(settings), settings)


async def _serve(settings: Settings) -> None:
    with bind_http(settings.http_listen) as listener:
        async with running_service(settings, listener, migrated=False) as service:
            log.info("listening", grpc=service.grpc_address, http=service.http_address)
            await stopping.until_stopped(service.application.check)
            await service.drain(settings.lame_duck)


def _become_supervisor(mode: Literal["up", "serve"], settings: Settings) -> NoReturn:
    """Replace this program, whose imports a supervisor does not need, in its process.

    The settings are checked here: later, Postgres and the workers would be started.
    `python -m server` imports from the working directory; an installed `academy` must
    not.
    """
    with report_errors(settings):
        open_listener_tls(settings)
        open_erasure_log(settings, system_clock)
    is_module = Path(sys.argv[0]).name == "__main__.py"
    command = [sys.executable, *([] if is_module else ["-P"])]
    command += ["-m", "server.cli.workers", mode]
    os.execv(sys.executable, command)  # noqa: S606 - this program


def _server_address(value: str) -> str:
    try:
        return check_server_address(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def edge(
    server: Annotated[
        str,
        typer.Option(
            help="Address of the gRPC server, HOST:PORT.", callback=_server_address
        ),
    ],
) -> None:
    """Serve REST in front of a gRPC server in another process."""
    settings = load_settings()
    run_async(_edge(settings, server), settings)


async def _edge(settings: Settings, server: str) -> None:
    tls = open_listener_tls(settings, with_grpc=False)
    credentials = upstream_credentials(settings, server)
    with bind_http(settings.http_listen) as listener:
        address = bound_address(settings.http_listen, listener)
        metrics = EdgeMetrics()
        certificates = partial(certificate_families, tls.credentials, credentials)
        metrics.others.append(certificates)
        async with (
            open_tracing(settings) as tracing,
            supervise(EventLoopMonitor(metrics.loop_lag.observe), *tls.tasks()),
            listening_metrics(settings.metrics_listen, metrics.render),
            connected_upstream(server, credentials) as upstream,
            serving.listening_http(
                remote_edge(upstream, settings, metrics.requests.observe, tracing),
                listener,
                http_protocol(settings, metrics.requests.observe),
                settings.http_keep_alive,
                tls.ssl_context,
            ),
        ):
            log.info("listening", http=address)
            await stopping.until_stopped()
