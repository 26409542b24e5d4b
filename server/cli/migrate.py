"""`academy migrate`: upgrades the database schema."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli import state_dir
from server.cli.database import open_database
from server.cli.terminal import load_settings, report_errors, run_async
from server.store import migrate as migrations
from server.store.connections.connect import Database


def migrate(
    after_rollout: Annotated[
        bool,
        typer.Option(
            "--after-rollout",
            help="Also run the migrations that processes of the release before do not "
            "support: once none of them runs any more.",
        ),
    ] = False,
) -> None:
    """Upgrade the database of DATABASE_URL to the schema of this release."""
    settings = state_dir.with_saved_values(load_settings())
    with report_errors():
        database = open_database(settings)
    run_async(_migrate(database, after_rollout=after_rollout), settings)


async def _migrate(database: Database, *, after_rollout: bool) -> None:
    await migrations.upgrade(database, after_rollout=after_rollout)
    revision = await migrations.current(database)
    typer.echo(f"the database schema is at revision {revision}")
    if revision == migrations.required() != migrations.newest():
        typer.echo(
            "when no process of the release before runs any more: "
            "academy migrate --after-rollout"
        )
