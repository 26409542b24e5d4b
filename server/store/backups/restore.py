"""Restore a backup: into an empty schema, checked before the previous one is dropped.

See previous_schema for what a failure or a crash leaves behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncConnection

from server.store import migrate
from server.store.backups.archive import Manifest, read_manifest
from server.store.backups.checks import check_restored
from server.store.backups.completion import (
    CompletionOptions,
    CompletionReport,
    RestoredStores,
    clear_caches,
    complete_restore,
)
from server.store.backups.contents import About, count_rows, describe
from server.store.backups.errors import BackupError
from server.store.backups.libpq import LibpqTarget
from server.store.backups.previous_schema import (
    SUFFIX,
    exclusive,
    has_previous,
    replaced,
)
from server.store.backups.programs import Programs, find_programs

# pg_restore sets transaction_timeout, which older servers do not know.
_FIRST_WITH_TRANSACTION_TIMEOUT = 17


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """The file, how pg_restore connects, and where it is searched.

    `replace` permits dropping what the database contains.
    """

    file: Path
    target: LibpqTarget
    folders: Sequence[Path]
    replace: bool
    options: CompletionOptions


async def restore_backup(
    stores: RestoredStores, request: RestoreRequest
) -> tuple[Manifest, CompletionReport]:
    """Restore a backup, upgrade its schema, and complete the restore.

    After an error, the database has its previous content. Raises BackupError,
    DamagedErasureLog, UnreadableKeys, StoreUnavailable.
    """
    database = stores.database
    manifest = await asyncio.to_thread(read_manifest, request.file, stores.secret)
    if not migrate.is_known(manifest.revision):
        raise BackupError(
            f"the backup has the schema of a newer release ({manifest.revision}): "
            "restore it with that release"
        )
    await clear_caches(stores.redis)  # fails here, if it does, and not half-way
    async with exclusive(database) as refuse_other_sessions:
        async with database.alone() as connection:
            about = await describe(connection)
            programs = await _check_target(connection, about, manifest, request)
        async with replaced(database, about.schema, refuse_other_sessions):
            await programs.restore(request.target, about.schema, request.file)
            async with database.alone() as restored:
                await check_restored(restored, manifest)
            await migrate.upgrade(database, in_restore=True)
            report = await complete_restore(stores, request.options)
    return manifest, report


async def _check_target(
    connection: AsyncConnection,
    about: About,
    manifest: Manifest,
    request: RestoreRequest,
) -> Programs:
    """Return the programs to use. Raises BackupError if this cannot be the target."""
    if about.schema != manifest.schema:
        raise BackupError(
            f"the backup is of the schema {manifest.schema}, and this database uses "
            f"{about.schema}: set the search_path to {manifest.schema}"
        )
    minimum = max(about.server_major, manifest.program_major)
    programs = await find_programs(request.folders, minimum)
    if about.server_major < _FIRST_WITH_TRANSACTION_TIMEOUT <= programs.major:
        raise BackupError(
            f"pg_restore {programs.major} cannot restore to Postgres "
            f"{about.server_major}: restore to Postgres {minimum} or newer"
        )
    previous = about.schema + (SUFFIX if await has_previous(connection) else "")
    rows = await count_rows(connection, previous)
    if rows and not request.replace:
        raise BackupError(
            f"the database {about.database} is not empty: with --replace, its tables "
            f"are dropped, with these rows: {_listed(rows)}"
        )
    return programs


def _listed(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{table} {count:,}" for table, count in sorted(rows.items()))
