"""The command line, `academy`: starts the services and looks after them."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Annotated, Any

import grpc
import orjson
import typer
import uvloop
from pydantic import SecretStr

from edge.listener import DeadlinedProtocol
from edge.openapi import document as openapi_document
from server import doctor as checks
from server import run, state
from server.app import (
    academy,
    edge_settings,
    ground,
    rates,
    remote_edge,
    signing_keys,
    users,
)
from server.config import (
    ConfigurationError,
    Settings,
    check_loopback,
    load,
    require,
)
from server.domain.accounts.users import Role
from server.domain.credentials.rotation import KeyInfo
from server.domain.errors import AcademyError
from server.embedded.processes import EmbeddedServerError
from server.embedded.servers import EmbeddedServers
from server.logs import configure
from server.rpc import contract
from server.rpc.accounts.users import check_sign_up
from server.rpc.contract import ContractError
from server.rpc.health import Health
from server.store import migrate as migrations
from server.store.credentials.signing_keys import UnreadableKeys
from server.store.outbox import PostgresOutbox

cli = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
admin = typer.Typer(no_args_is_help=True, help="Look after admins.")
cli.add_typer(admin, name="admin")
keys = typer.Typer(no_args_is_help=True, help="Look after the keys that sign tokens.")
cli.add_typer(keys, name="keys")
outbox = typer.Typer(no_args_is_help=True, help="Look after what is not delivered.")
cli.add_typer(outbox, name="outbox")
# between NOT_SERVING and the last answer: a probe a second sees it (L12)
LAME_DUCK = timedelta(seconds=2)
_REFUSALS = (
    AcademyError,
    ConfigurationError,
    ContractError,
    EmbeddedServerError,
    UnreadableKeys,
    run.AddressInUse,
)


@contextmanager
def _told() -> Iterator[None]:
    """Tell an operator what is wrong in a sentence; a trace is for what is not."""
    try:
        yield
    except _REFUSALS as error:
        typer.secho(str(error), err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from error


def _run(work: Coroutine[Any, Any, None]) -> None:
    with _told():
        uvloop.run(work)


@cli.callback()
def _before_any_command() -> None:
    run.in_long_slices()


def _loaded(*required: str, debug: bool | None = None) -> Settings:
    """Give the settings, and begin to log; `debug` is the default of DEBUG."""
    with _told():
        settings = load(*required)
        if debug is not None and "debug" not in settings.model_fields_set:
            settings = settings.model_copy(update={"debug": debug})
        check_loopback(settings)
        rates(settings)
    configure(settings.log_level)
    return settings


@cli.command()
def up() -> None:
    """Start everything here: Postgres and Valkey unless given, gRPC and REST."""
    settings = _loaded(debug=True)
    with _told():
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
    async with _serving(settings, timedelta(0)) as (health, grpc_port, http_port):
        _print_banner(settings, grpc_port, http_port)
        await run.until_stopped(health.drain, servers.check)


def _url(settings: Settings) -> str:
    require(settings, "database_url")
    return settings.database_url.get_secret_value() if settings.database_url else ""


@asynccontextmanager
async def _serving(
    settings: Settings, lame_duck: timedelta
) -> AsyncIterator[tuple[Health, int, int]]:
    """Serve gRPC and REST for as long as the block lasts; gives the ports."""
    async with (
        ground(settings) as base,
        academy(base, lame_duck) as built,
        run.listening_grpc(built.grpc, settings.grpc_listen) as grpc_port,
        run.listening_http(
            built.http, settings.http_listen, DeadlinedProtocol
        ) as http_port,
    ):
        gc.collect()
        gc.freeze()  # what lives as long as the process: 12 of 74 us a request
        yield built.health, grpc_port, http_port


def _print_banner(settings: Settings, grpc_port: int, http_port: int) -> None:
    rest = f"http://{settings.http_listen.rpartition(':')[0]}:{http_port}"
    rpc = f"{settings.grpc_listen.rpartition(':')[0]}:{grpc_port}"
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
    settings = _loaded("database_url", "redis_url", "secret_key")
    _run(_serve(settings))


async def _serve(settings: Settings) -> None:
    if await migrations.behind(_url(settings)):
        raise ConfigurationError(
            "the database has an older schema than this code needs: academy migrate"
        )
    async with _serving(settings, LAME_DUCK) as (health, _, _):
        await run.until_stopped(health.drain)


@cli.command()
def edge(
    server: Annotated[str, typer.Option(help="HOST:PORT of a gRPC server.")],
) -> None:
    """Serve REST alone, in front of a gRPC server elsewhere."""
    settings = _loaded()
    _run(_edge(settings, server))


async def _edge(settings: Settings, server: str) -> None:
    async with (
        grpc.aio.insecure_channel(server) as channel,
        run.listening_http(
            remote_edge(channel, settings), settings.http_listen, DeadlinedProtocol
        ),
    ):
        await run.until_stopped()


@cli.command()
def migrate() -> None:
    """Bring the database of DATABASE_URL to the newest schema."""
    settings = state.completed(_loaded())
    with _told():
        url = _url(settings)
    _run(migrations.upgrade(url))
    typer.echo(f"schema {migrations.newest()}")


@admin.command("create")
def create_admin(
    email: Annotated[str, typer.Option(prompt=True)],
    username: Annotated[str, typer.Option(prompt=True)],
) -> None:
    """Make an account whose role is admin; reads its password from the terminal.

    Without a terminal the password is the first line of standard input: an option
    would be seen by everybody who lists processes.
    """
    settings = state.completed(_loaded())
    password = (
        typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        if sys.stdin.isatty()
        else sys.stdin.readline().rstrip("\n")
    )
    _run(_create_admin(settings, email, username, password))


async def _create_admin(
    settings: Settings, email: str, username: str, password: str
) -> None:
    check_sign_up(email, username, password)
    async with ground(settings) as base:
        user = await users(base).register(email, username, password, role=Role.ADMIN)
    typer.echo(f"admin {user.username}, user {user.id}")


@keys.command("list")
def list_keys() -> None:
    """List the keys, the newest first."""
    _run(_list_keys(state.completed(_loaded())))


async def _list_keys(settings: Settings) -> None:
    async with ground(settings) as base:
        _print_keys(await signing_keys(base).list())


@keys.command("rotate")
def rotate_keys(
    force: Annotated[
        bool, typer.Option("--force", help="Do not wait for who keeps the key set.")
    ] = False,
) -> None:
    """Have the next key sign; every process learns it at once."""
    _run(_rotate_keys(state.completed(_loaded()), force))


async def _rotate_keys(settings: Settings, force: bool) -> None:
    async with ground(settings) as base:
        _print_keys(await signing_keys(base).rotate(force=force))


def _print_keys(found: Sequence[KeyInfo]) -> None:
    for key in found:
        made = key.created_at.isoformat(timespec="seconds")
        typer.echo(f"{key.kid}  {key.state.name.lower():<8} made {made}")


@outbox.command("list")
def list_dead() -> None:
    """List what was tried too often: mails, as a rule, that a server refuses."""
    _run(_list_dead(state.completed(_loaded())))


async def _list_dead(settings: Settings) -> None:
    async with ground(settings) as base:
        found = await PostgresOutbox(base.database).dead()
    for entry in found:
        typer.echo(
            f"{entry.id:<10} {entry.created_at:%Y-%m-%d %H:%M} {entry.kind:<24}"
            f" user {entry.user_id or '-':<8} {entry.last_error}"
        )
    typer.echo(f"{len(found)} dead")


@outbox.command()
def retry(
    ids: Annotated[list[int] | None, typer.Argument(help="Which; all if none.")] = None,
) -> None:
    """Have dead entries delivered anew."""
    _run(_retry(state.completed(_loaded()), ids or []))


async def _retry(settings: Settings, ids: list[int]) -> None:
    async with ground(settings) as base:
        store = PostgresOutbox(base.database)
        wanted = ids or [entry.id for entry in await store.dead()]
        revived = await store.revive(wanted)
    typer.echo(f"{revived} put back")


@cli.command()
def openapi() -> None:
    """Write the REST side of the contract as OpenAPI 3.1 to standard output."""
    settings = edge_settings(_loaded(), {})
    document = openapi_document(contract.descriptors(), settings)
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


@cli.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check the settings and what they name; say what to do."""
    settings = state.completed(_loaded())
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
