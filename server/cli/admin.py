"""`academy admin`: creates administrator accounts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from server.cli import state_dir
from server.cli.terminal import load_settings, run_async
from server.composition.accounts import users
from server.composition.resources import open_resources
from server.config import Settings
from server.domain.accounts.users import Role
from server.rpc.accounts.users import check_sign_up

commands = typer.Typer(no_args_is_help=True, help="Manage administrators.")


@commands.callback()
def _admin() -> None:
    """Manage administrators."""


@commands.command()
def create(
    email: Annotated[str, typer.Option(prompt=True, help="E-mail address.")],
    username: Annotated[str, typer.Option(prompt=True, help="Username.")],
) -> None:
    """Create an account with the role ADMIN.

    The terminal prompts for the password; without a terminal, the password
    is the first line of standard input. It is not an option, because other
    users of this machine can see the arguments of a process.
    """
    settings = state_dir.with_saved_values(load_settings())
    password = (
        typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        if sys.stdin.isatty()
        else sys.stdin.readline().rstrip("\n")
    )
    run_async(_create(settings, email, username, password), settings)


async def _create(settings: Settings, email: str, username: str, password: str) -> None:
    check_sign_up(email, username, password)
    async with open_resources(settings) as resources:
        user = await users(resources).register(
            email, username, password, role=Role.ADMIN
        )
    typer.echo(f"created admin {user.username} with user id {user.id}")
