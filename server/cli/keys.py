"""`academy keys`: lists and rotates the keys that sign access tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from server.cli import state_dir
from server.cli.terminal import load_settings, run_async
from server.composition.auth import signing_keys
from server.composition.resources import open_resources
from server.config import Settings
from server.domain.credentials.rotation import KeyInfo

commands = typer.Typer(
    no_args_is_help=True, help="Manage the keys that sign access tokens."
)


@commands.command("list")
def list_keys() -> None:
    """List the signing keys, newest first."""
    settings = state_dir.with_saved_values(load_settings())
    run_async(_list(settings), settings)


async def _list(settings: Settings) -> None:
    async with open_resources(settings) as resources:
        _print_keys(await signing_keys(resources).list())


@commands.command()
def rotate(
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Rotate even if verifiers may not have loaded the next key yet.",
        ),
    ] = False,
) -> None:
    """Activate the next signing key.

    Running servers use it immediately, or within 30 s if Redis is unavailable.
    """
    settings = state_dir.with_saved_values(load_settings())
    run_async(_rotate(settings, force), settings)


async def _rotate(settings: Settings, force: bool) -> None:
    async with open_resources(settings) as resources:
        _print_keys(await signing_keys(resources).rotate(force=force))


def _print_keys(keys: Sequence[KeyInfo]) -> None:
    for key in keys:
        created = key.created_at.isoformat(timespec="seconds")
        typer.echo(f"{key.kid}  {key.state.name.lower():<8} created {created}")
