"""`academy migrate`: upgrades the database schema, or says what an upgrade would do."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli import state_dir
from server.cli.database import open_database
from server.cli.terminal import load_settings, report_errors, run_async
from server.store import migrate as migrations
from server.store.connections.connect import Database
from server.store.migrations.script import script


def migrate(
    after_rollout: Annotated[
        bool,
        typer.Option(
            "--after-rollout",
            help="Also run the migrations that processes of the release before do not "
            "support: once none of them runs any more.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Change nothing; list the missing migrations and exit with 1 if there "
            "are any.",
        ),
    ] = False,
    sql: Annotated[
        bool,
        typer.Option(
            "--sql",
            help="Change nothing; print the missing migrations as SQL for psql, or all "
            "of them without a database.",
        ),
    ] = False,
) -> None:
    """Upgrade the database of DATABASE_URL to the schema of this release."""
    if check and sql:
        raise typer.BadParameter("--check and --sql exclude each other")
    settings = state_dir.with_saved_values(load_settings())
    if sql and settings.database_url is None:
        typer.echo(script(""), nl=False)
        return
    with report_errors():
        database = open_database(settings)
    work = _check if check else _print_sql if sql else _migrate
    run_async(work(database, after_rollout=after_rollout), settings)


async def _migrate(database: Database, *, after_rollout: bool) -> None:
    await migrations.upgrade(database, after_rollout=after_rollout)
    _print_revision(await migrations.current(database))


async def _check(database: Database, *, after_rollout: bool) -> None:
    revision = await migrations.current(database)
    missing = migrations.missing(revision, after_rollout=after_rollout)
    if not missing:
        _print_revision(revision)
        return
    typer.echo(
        f"the database schema is at revision {revision or 'none'}, behind this release"
        f" ({missing[-1].revision}); academy migrate runs"
    )
    for migration in missing:
        typer.echo(f"  {migration.revision}  {migration.description}")
    raise typer.Exit(1)


async def _print_sql(database: Database, *, after_rollout: bool) -> None:
    revision = await migrations.current(database)
    typer.echo(script(revision, after_rollout=after_rollout), nl=False)


def _print_revision(revision: str) -> None:
    """Print the revision of a database that is not behind this release."""
    newest = migrations.newest()
    is_required = revision == migrations.required()
    is_newer = revision != newest and not is_required
    note = f", newer than this release ({newest})" if is_newer else ""
    typer.echo(f"the database schema is at revision {revision}{note}")
    if is_required and revision != newest:
        typer.echo(
            "when no process of the release before runs any more: "
            "academy migrate --after-rollout"
        )
