"""The command line, `academy`: starts the services and looks after them."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated

import grpc
import orjson
import structlog
import typer
import uvloop
from pydantic import SecretStr

from edge.listener import DeadlinedProtocol
from edge.openapi import document as openapi_document
from edge.port import CHANNEL_OPTIONS
from server import doctor as checks
from server import state
from server.composition import serving
from server.composition.application import Application, build_application
from server.composition.edge import edge_settings, remote_edge
from server.composition.resources import open_resources
from server.config import ConfigurationError, Settings, require
from server.embedded.servers import EmbeddedServers
from server.operations import admin, keys, outbox
from server.rpc import contract
from server.store import migrate as migrations
from server.terminal import loaded, report_errors, run_to_end

cli = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
for name, commands in {"admin": admin, "keys": keys, "outbox": outbox}.items():
    cli.add_typer(commands, name=name)
# between NOT_SERVING and the last answer: a probe a second sees it (L12)
LAME_DUCK = timedelta(seconds=2)
log = structlog.get_logger()


@cli.callback()
def _before_any_command() -> None:
    serving.use_batch_scheduling()


@cli.command()
def up() -> None:
    """Start everything here: Postgres and Valkey unless given, gRPC and REST."""
    settings = loaded(debug=True)
    with report_errors():
        servers = EmbeddedServers(settings.state_dir)
        try:
            uvloop.run(_up(_with_servers(settings, servers), servers))
        finally:
            servers.stop()


def _with_servers(settings: Settings, servers: EmbeddedServers) -> Settings:
    """Start what is not given, and give the settings that name it."""
    given: dict[str, SecretStr] = {}
    if settings.database_url is None:
        given["database_url"] = SecretStr(servers.start_postgres())
    if settings.redis_url is None:
        given["redis_url"] = SecretStr(servers.start_valkey())
    if settings.secret_key is None:
        given["secret_key"] = state.kept_secret(settings.state_dir)
    urls = {n: v.get_secret_value() for n, v in given.items() if n.endswith("_url")}
    state.keep_endpoints(settings.state_dir, urls)
    return settings.model_copy(update=given)


async def _up(settings: Settings, servers: EmbeddedServers) -> None:
    await migrations.upgrade(_url(settings))
    async with _serving(settings, timedelta(0)) as (application, grpc_port, http_port):
        _print_banner(settings, grpc_port, http_port)
        await serving.until_stopped(application.drain, servers.check)


def _url(settings: Settings) -> str:
    require(settings, "database_url")
    return settings.database_url.get_secret_value() if settings.database_url else ""


@asynccontextmanager
async def _serving(
    settings: Settings, lame_duck: timedelta
) -> AsyncIterator[tuple[Application, int, int]]:
    """Serve gRPC and REST for as long as the block lasts; gives the ports."""
    async with (
        open_resources(settings) as base,
        build_application(base, lame_duck) as built,
        serving.listening_grpc(built.grpc, settings.grpc_listen) as grpc_port,
        serving.listening_http(
            built.http, settings.http_listen, DeadlinedProtocol
        ) as http_port,
    ):
        gc.collect()
        gc.freeze()  # what lives as long as the process: 12 of 74 us a request
        yield built, grpc_port, http_port


def _with_port(address: str, port: int) -> str:
    """Give where we listen, when a port of 0 let the system choose one."""
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


@cli.command()
def serve() -> None:
    """Serve gRPC and REST over the Postgres and Redis of DATABASE_URL, REDIS_URL."""
    settings = loaded("database_url", "redis_url", "secret_key")
    run_to_end(_serve(settings))


async def _serve(settings: Settings) -> None:
    if await migrations.behind(_url(settings)):
        raise ConfigurationError(
            "the database has an older schema than this code needs: academy migrate"
        )
    async with _serving(settings, LAME_DUCK) as (application, grpc_port, http_port):
        log.info(
            "listening",
            grpc=_with_port(settings.grpc_listen, grpc_port),
            http=_with_port(settings.http_listen, http_port),
        )
        await serving.until_stopped(application.drain)


@cli.command()
def edge(
    server: Annotated[str, typer.Option(help="HOST:PORT of a gRPC server.")],
) -> None:
    """Serve REST alone, in front of a gRPC server elsewhere."""
    settings = loaded()
    run_to_end(_edge(settings, server))


async def _edge(settings: Settings, server: str) -> None:
    async with (
        grpc.aio.insecure_channel(server, CHANNEL_OPTIONS) as channel,
        serving.listening_http(
            remote_edge(channel, settings), settings.http_listen, DeadlinedProtocol
        ) as port,
    ):
        log.info("listening", http=_with_port(settings.http_listen, port))
        await serving.until_stopped()


@cli.command()
def migrate() -> None:
    """Bring the database of DATABASE_URL to the newest schema."""
    settings = state.completed(loaded())
    with report_errors():
        url = _url(settings)
    run_to_end(migrations.upgrade(url))
    typer.echo(f"schema {migrations.newest()}")


@cli.command()
def openapi() -> None:
    """Write the REST side of the contract as OpenAPI 3.1 to standard output."""
    settings = edge_settings(loaded(), {})
    document = openapi_document(contract.descriptors(), settings)
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


@cli.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check the settings and what they name; say what to do."""
    settings = state.completed(loaded())
    found = uvloop.run(checks.findings(settings))
    shown = checks.shown_settings(settings)
    if as_json:
        report = {"settings": shown, "findings": found}
        typer.echo(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())
    else:
        for name, value in shown.items():
            typer.echo(f"{name:<22} {value}")
        typer.echo("")
        for finding in found:
            mark = "ok " if finding.ok else "NOT"
            typer.echo(f"{mark} {finding.check:<12} {finding.found}")
            if finding.advice:
                typer.echo(f"    {'':<12} -> {finding.advice}")
    raise typer.Exit(0 if all(finding.ok for finding in found) else 1)


def main() -> None:
    """Run `academy`."""
    cli()


if __name__ == "__main__":
    main()
