"""`academy up`, `serve` and `edge`: the commands that run until they are stopped."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Annotated

import grpc
import structlog
import typer
import uvloop
from pydantic import SecretStr

from edge.listener import DeadlinedProtocol
from edge.port import CHANNEL_OPTIONS
from server.cli import state_dir
from server.cli.database import open_database
from server.cli.terminal import load_settings, report_errors, run_async
from server.composition import serving
from server.composition.application import Application, build_application
from server.composition.edge import remote_edge
from server.composition.resources import open_resources
from server.config import ConfigurationError, Settings
from server.config_types import check_server_address
from server.embedded.servers import EmbeddedServers
from server.store import migrate
from server.store.connections.connect import Database

# Time between NOT_SERVING and the end of the listeners: a health check that runs
# once a second sees it.
LAME_DUCK = timedelta(seconds=2)
log = structlog.get_logger()


def up() -> None:
    """Serve gRPC and REST; start Postgres and Valkey unless their URLs are set.

    The URLs are DATABASE_URL and REDIS_URL.
    """
    settings = load_settings(debug=True)
    with report_errors(settings):
        servers = EmbeddedServers(settings.state_dir)
        try:
            uvloop.run(_up(_with_embedded_servers(settings, servers), servers))
        finally:
            servers.stop()


def _with_embedded_servers(settings: Settings, servers: EmbeddedServers) -> Settings:
    """Start the servers whose URL is not set; return settings that name them."""
    values: dict[str, SecretStr] = {}
    if settings.database_url is None:
        values["database_url"] = SecretStr(servers.start_postgres())
    if settings.redis_url is None:
        values["redis_url"] = SecretStr(servers.start_valkey())
    if settings.secret_key is None:
        values["secret_key"] = state_dir.load_or_create_secret_key(settings.state_dir)
    urls = {n: v.get_secret_value() for n, v in values.items() if n.endswith("_url")}
    state_dir.save_endpoints(settings.state_dir, urls)
    return settings.model_copy(update=values)


async def _up(settings: Settings, servers: EmbeddedServers) -> None:
    await migrate.upgrade(open_database(settings))
    async with _serving(settings, timedelta(0), migrated=True) as (
        application,
        grpc_port,
        http_port,
    ):
        _print_banner(settings, grpc_port, http_port)

        def check() -> None:
            servers.check()
            application.check()

        await serving.until_stopped(application.drain, check)


@asynccontextmanager
async def _serving(
    settings: Settings, lame_duck: timedelta, *, migrated: bool
) -> AsyncIterator[tuple[Application, int, int]]:
    """Serve gRPC and REST while the block runs; yield the application and both ports.

    Unless it was `migrated` just now, the schema is checked before calls are served.
    HTTP is bound first: links in e-mails may contain its port.
    """
    with serving.bind_http(settings.http_listen) as listener:
        http_port: int = listener.getsockname()[1]
        address = _with_port(settings.http_listen, http_port)
        async with (
            open_resources(
                settings.model_copy(update={"http_listen": address})
            ) as resources,
            build_application(
                resources,
                lame_duck,
                *([] if migrated else [partial(_check_schema, resources.database)]),
            ) as application,
            serving.listening_grpc(application.grpc, settings.grpc_listen) as grpc_port,
            serving.listening_http(
                application.http, listener, DeadlinedProtocol, settings.http_keep_alive
            ),
        ):
            gc.collect()
            gc.freeze()  # skip long-lived objects: saves 12 of 74 us per request
            yield application, grpc_port, http_port


def _with_port(address: str, port: int) -> str:
    """Return the address with the port that is bound (the setting may say 0)."""
    return f"{address.rpartition(':')[0]}:{port}"


def _print_banner(settings: Settings, grpc_port: int, http_port: int) -> None:
    rest = f"http://{_with_port(settings.http_listen, http_port)}"
    rpc = _with_port(settings.grpc_listen, grpc_port)
    docs = f"   docs {rest}/docs" if settings.debug else ""
    typer.echo(
        f"""
Blatam Academy is up.   REST {rest}   gRPC {rpc}{docs}

  curl {rest}/api/v1/users -H 'content-type: application/json' \\
    -d '{{"email": "ana@example.com", "username": "ana", "password": "Blue7horse"}}'
  curl {rest}/api/v1/auth/login -H 'content-type: application/json' \\
    -d '{{"identifier": "ana", "password": "Blue7horse"}}'
  curl {rest}/api/v1/users/me -H "authorization: Bearer $ACCESS_TOKEN"
"""
    )
    sys.stdout.flush()


def serve() -> None:
    """Serve gRPC and REST with the servers of DATABASE_URL and REDIS_URL."""
    settings = load_settings("database_url", "redis_url", "secret_key")
    run_async(_serve(settings), settings)


async def _serve(settings: Settings) -> None:
    async with _serving(settings, LAME_DUCK, migrated=False) as (
        application,
        grpc_port,
        http_port,
    ):
        log.info(
            "listening",
            grpc=_with_port(settings.grpc_listen, grpc_port),
            http=_with_port(settings.http_listen, http_port),
        )
        await serving.until_stopped(application.drain, application.check)


async def _check_schema(database: Database) -> None:
    """Raise ConfigurationError if the schema is older than this release."""
    if await migrate.is_behind(database):
        raise ConfigurationError(
            "the database schema is older than this release: run academy migrate"
        )


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
    with serving.bind_http(settings.http_listen) as listener:
        port = listener.getsockname()[1]
        async with (
            grpc.aio.insecure_channel(server, CHANNEL_OPTIONS) as channel,
            serving.listening_http(
                remote_edge(channel, settings),
                listener,
                DeadlinedProtocol,
                settings.http_keep_alive,
            ),
        ):
            log.info("listening", http=_with_port(settings.http_listen, port))
            await serving.until_stopped()
