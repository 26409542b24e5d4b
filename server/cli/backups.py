"""`academy backup`, `restore` and `complete-restore`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from server.cli import state_dir
from server.cli.terminal import load_settings, print_error, report_errors, run_async
from server.composition.backups import (
    backup_source,
    logged_erasures,
    restore_request,
    restored_stores,
)
from server.composition.resources import open_resources
from server.config import Settings
from server.store import migrate
from server.store.backups.backup import BackupSource, create_backup
from server.store.backups.completion import (
    CompletionOptions,
    CompletionReport,
)
from server.store.backups.completion import (
    complete_restore as complete,
)
from server.store.backups.errors import BackupError
from server.store.backups.previous_schema import exclusive, marked_unfinished
from server.store.backups.restore import restore_backup

ErasureLogs = Annotated[
    list[Path] | None,
    typer.Option(
        "--erasure-log",
        help="Erase the users in this file again, besides those in ERASURE_LOG; "
        "repeatable.",
    ),
]
EndSessions = Annotated[
    bool,
    typer.Option(
        "--end-sessions",
        help="End all sessions: log-outs since the backup are not known.",
    ),
]
DiscardMails = Annotated[
    bool,
    typer.Option(
        "--discard-mails",
        help="Delete the e-mails that were waiting at the time of the backup; by "
        "default they are sent, perhaps again.",
    ),
]


def backup(file: Annotated[Path, typer.Argument(help="The new file.")]) -> None:
    """Back up the database to a file, and verify the file.

    The service can run. The backup can be restored only with the same SECRET_KEY,
    which it does not contain: keep the key elsewhere.
    """
    settings = state_dir.with_saved_values(load_settings())
    with report_errors(settings):
        source = backup_source(settings, _installed_programs())
    run_async(_backup(source, file), settings)


async def _backup(source: BackupSource, file: Path) -> None:
    manifest = await create_backup(source, file)
    rows = sum(manifest.rows.values())
    typer.echo(
        f"backed up {rows:,} rows of {len(manifest.rows)} tables to {file}: "
        f"{manifest.dump_bytes:,} bytes, schema revision {manifest.revision}, "
        f"as of {manifest.created_at:%Y-%m-%d %H:%M:%S} UTC"
    )


def restore(
    file: Annotated[Path, typer.Argument(help="A file of academy backup.")],
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Drop the tables that the database contains."),
    ] = False,
    erasure_log: ErasureLogs = None,
    end_sessions: EndSessions = False,
    discard_mails: DiscardMails = False,
) -> None:
    """Restore a backup to an empty database.

    Stop every process of the service before. If it fails, the database has its
    previous content. Without DATABASE_URL, the Postgres of `academy up` is started.
    """
    # Not at the top: the embedded servers are an extra.
    from server.embedded.processes import EmbeddedServerError

    settings = load_settings()
    expected = (EmbeddedServerError,)
    with report_errors(settings, expected=expected), _servers(settings) as settings:
        options = _options(settings, erasure_log, end_sessions, discard_mails)
        run_async(_restore(settings, file, options, replace), settings)


async def _restore(
    settings: Settings, file: Path, options: CompletionOptions, replace: bool
) -> None:
    request = restore_request(
        settings, _installed_programs(), file, options, replace=replace
    )
    async with open_resources(settings) as resources:
        manifest, report = await restore_backup(restored_stores(resources), request)
    rows = sum(manifest.rows.values())
    typer.echo(
        f"restored {rows:,} rows of {len(manifest.rows)} tables, as of "
        f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC"
    )
    _print_report(report, options)


def complete_restore(
    erasure_log: ErasureLogs = None,
    end_sessions: EndSessions = False,
    discard_mails: DiscardMails = False,
) -> None:
    """Complete a restore that was made by other tools, such as a recovery from WAL.

    It checks the database, erases the users in the erasure log again, and removes what
    belongs to the time that is lost. Stop every process of the service before.
    """
    settings = load_settings("database_url", "redis_url", "secret_key")
    with report_errors(settings):
        options = _options(settings, erasure_log, end_sessions, discard_mails)
    run_async(_complete(settings, options), settings)


async def _complete(settings: Settings, options: CompletionOptions) -> None:
    async with open_resources(settings) as resources:
        database = resources.database
        async with exclusive(database) as refuse_other_sessions:
            if await migrate.is_behind(database, marked=True):
                raise BackupError("the database schema is old: run academy migrate")
            async with marked_unfinished(database, refuse_other_sessions):
                report = await complete(restored_stores(resources), options)
    _print_report(report, options)


def _installed_programs() -> Path | None:
    """Return the folder of the programs in the wheel of `academy up`, if it is here."""
    from server.embedded.wheels import client_folder

    return client_folder()


@contextmanager
def _servers(settings: Settings) -> Iterator[Settings]:
    """Yield settings with servers: those of the settings, or those of `academy up`."""
    if settings.database_url and settings.redis_url:
        yield settings
        return
    # Not at the top: the embedded servers are an extra.
    from server.cli.embedded import embedded_servers

    with embedded_servers(settings) as (settings, _):
        yield settings


def _options(
    settings: Settings,
    files: list[Path] | None,
    end_sessions: bool,
    discard_mails: bool,
) -> CompletionOptions:
    erasures = logged_erasures(settings, files or [])
    if erasures is None:
        print_error(
            "no erasure log: users who were erased since the backup will exist again "
            "(--erasure-log, ERASURE_LOG)"
        )
    return CompletionOptions(erasures or {}, end_sessions, discard_mails)


def _print_report(report: CompletionReport, options: CompletionOptions) -> None:
    typer.echo(
        f"users erased again: {report.erased} (in the erasure log: "
        f"{len(options.erasures)})"
    )
    if options.end_sessions:
        typer.echo(f"sessions ended: {report.ended_sessions}")
    if report.pending_mails:
        typer.echo(
            f"e-mails to be sent, perhaps for the second time: {report.pending_mails}"
        )
