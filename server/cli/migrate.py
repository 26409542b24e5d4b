"""`academy migrate`: upgrades the database schema, or says what an upgrade would do."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli import state_dir
from server.cli.database import open_database
from server.cli.terminal import load_settings, report_errors, run_async
from server.config import Settings
from server.store import migrate as migrations
from server.store.connections.connect import Database


def migrate(
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Change nothing; list the missing migrations and exit with 1 if there"
            " are any.",
        ),
    ] = False,
    sql: Annotated[
        bool,
        typer.Option(
            "--sql",
            help="Change nothing; print the missing migrations as SQL for psql, or all"
            " of them without a database.",
        ),
    ] = False,
) -> None:
    """Upgrade the database of DATABASE_URL to the schema of this release."""
    if check and sql:
        raise typer.BadParameter("--check and --sql exclude each other")
    settings = state_dir.with_saved_values(load_settings())
    if sql and settings.database_url is None:
        typer.echo(migrations.script(""), nl=False)
        return
    with report_errors():
        database = open_database(settings)
    _run(database, settings, check=check, sql=sql)


def _run(database: Database, settings: Settings, *, check: bool, sql: bool) -> None:
    if check:
        run_async(_check(database), settings)
    elif sql:
        run_async(_print_sql(database), settings)
    else:
        run_async(migrations.upgrade(database), settings)
        typer.echo(f"the database schema is at revision {migrations.newest()}")


async def _check(database: Database) -> None:
    revision = await migrations.current(database)
    missing = migrations.missing(revision)
    if missing:
        typer.echo(
            f"the database schema is behind this release: revision {revision or 'none'}"
            f" instead of {migrations.newest()}; run academy migrate for"
        )
        for migration in missing:
            typer.echo(f"  {migration.revision}  {migration.description}")
        raise typer.Exit(1)
    is_newer = revision != migrations.newest()
    note = f", newer than this release ({migrations.newest()})" if is_newer else ""
    typer.echo(f"the database schema is at revision {revision}{note}")


async def _print_sql(database: Database) -> None:
    typer.echo(migrations.script(await migrations.current(database)), nl=False)
