"""`academy migrate`: upgrades the database schema."""

from __future__ import annotations

import typer

from server.cli import state_dir
from server.cli.database import open_database
from server.cli.terminal import load_settings, report_errors, run_async
from server.store import migrate as migrations


def migrate() -> None:
    """Upgrade the database of DATABASE_URL to the schema of this release."""
    settings = state_dir.with_saved_values(load_settings())
    with report_errors():
        database = open_database(settings)
    run_async(migrations.upgrade(database), settings)
    typer.echo(f"the database schema is at revision {migrations.newest()}")
