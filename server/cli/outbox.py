"""`academy outbox`: lists and retries dead letters."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli import state_dir
from server.cli.terminal import failure, load_settings, run_async
from server.composition.resources import open_resources
from server.config import Settings
from server.store.outbox import PostgresOutbox

MAX_ID = 2**63 - 1  # of the column, a bigint
commands = typer.Typer(
    no_args_is_help=True, help="Manage outbox entries that could not be delivered."
)


@commands.command("list")
def list_dead_letters() -> None:
    """List the dead letters.

    These are entries whose delivery failed 15 times, usually e-mails that
    the mail server rejected.
    """
    settings = state_dir.with_saved_values(load_settings())
    run_async(_list(settings), settings)


async def _list(settings: Settings) -> None:
    async with open_resources(settings) as resources:
        entries = await PostgresOutbox(resources.database).dead_letters()
    for entry in entries:
        typer.echo(
            f"{entry.id:<10} {entry.created_at:%Y-%m-%d %H:%M} {entry.kind:<24}"
            f" user {entry.user_id or '-':<8} {entry.last_error}"
        )
    typer.echo(f"dead letters: {len(entries)}")


@commands.command()
def retry(
    ids: Annotated[
        list[int] | None,
        typer.Argument(
            min=1, max=MAX_ID, help="Ids of the entries to retry; all if omitted."
        ),
    ] = None,
) -> None:
    """Queue dead letters for delivery again."""
    settings = state_dir.with_saved_values(load_settings())
    run_async(_retry(settings, ids or []), settings)


async def _retry(settings: Settings, ids: list[int]) -> None:
    async with open_resources(settings) as resources:
        store = PostgresOutbox(resources.database)
        entry_ids = ids or [entry.id for entry in await store.dead_letters()]
        requeued = await store.requeue(entry_ids)
    typer.echo(f"dead letters queued again: {len(requeued)}")
    if others := sorted({*ids} - requeued):
        raise failure(f"not dead letters: {', '.join(map(str, others))}")
