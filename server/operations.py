"""Commands of operators: admins, signing keys, and mails that did not get through."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from server import state
from server.composition.accounts import users
from server.composition.auth import signing_keys
from server.composition.resources import open_resources
from server.config import Settings
from server.domain.accounts.users import Role
from server.domain.credentials.rotation import KeyInfo
from server.rpc.accounts.users import check_sign_up
from server.store.outbox import PostgresOutbox
from server.terminal import loaded, run_to_end

admin = typer.Typer(no_args_is_help=True, help="Look after admins.")
keys = typer.Typer(no_args_is_help=True, help="Look after the keys that sign tokens.")
outbox = typer.Typer(no_args_is_help=True, help="Look after what is not delivered.")


@admin.command("create")
def create_admin(
    email: Annotated[str, typer.Option(prompt=True)],
    username: Annotated[str, typer.Option(prompt=True)],
) -> None:
    """Make an account whose role is admin; reads its password from the terminal.

    Without a terminal the password is the first line of standard input: an option
    would be seen by everybody who lists processes.
    """
    settings = state.completed(loaded())
    password = (
        typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        if sys.stdin.isatty()
        else sys.stdin.readline().rstrip("\n")
    )
    run_to_end(_create_admin(settings, email, username, password))


async def _create_admin(
    settings: Settings, email: str, username: str, password: str
) -> None:
    check_sign_up(email, username, password)
    async with open_resources(settings) as base:
        user = await users(base).register(email, username, password, role=Role.ADMIN)
    typer.echo(f"admin {user.username}, user {user.id}")


@keys.command("list")
def list_keys() -> None:
    """List the keys, the newest first."""
    run_to_end(_list_keys(state.completed(loaded())))


async def _list_keys(settings: Settings) -> None:
    async with open_resources(settings) as base:
        _print_keys(await signing_keys(base).list())


@keys.command("rotate")
def rotate_keys(
    force: Annotated[
        bool, typer.Option("--force", help="Do not wait for who keeps the key set.")
    ] = False,
) -> None:
    """Have the next key sign; every process learns it at once."""
    run_to_end(_rotate_keys(state.completed(loaded()), force))


async def _rotate_keys(settings: Settings, force: bool) -> None:
    async with open_resources(settings) as base:
        _print_keys(await signing_keys(base).rotate(force=force))


def _print_keys(found: Sequence[KeyInfo]) -> None:
    for key in found:
        made = key.created_at.isoformat(timespec="seconds")
        typer.echo(f"{key.kid}  {key.state.name.lower():<8} made {made}")


@outbox.command("list")
def list_dead() -> None:
    """List what was tried too often: mails, as a rule, that a server refuses."""
    run_to_end(_list_dead(state.completed(loaded())))


async def _list_dead(settings: Settings) -> None:
    async with open_resources(settings) as base:
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
    run_to_end(_retry(state.completed(loaded()), ids or []))


async def _retry(settings: Settings, ids: list[int]) -> None:
    async with open_resources(settings) as base:
        store = PostgresOutbox(base.database)
        wanted = ids or [entry.id for entry in await store.dead()]
        revived = await store.revive(wanted)
    typer.echo(f"{revived} put back")
