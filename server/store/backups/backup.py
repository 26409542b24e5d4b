"""Make a backup: dump one snapshot of the database to a file, and verify the file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.credentials.secret_key import SecretKey
from server.store.backups.archive import (
    Manifest,
    append_manifest,
    digest,
    read_manifest,
)
from server.store.backups.contents import (
    About,
    count_rows,
    describe,
    disable_timeouts,
    revision_of,
)
from server.store.backups.errors import BackupError
from server.store.backups.libpq import LibpqTarget
from server.store.backups.programs import Programs, find_programs
from server.store.connections.connect import Database

LOCK_WAIT_MILLISECONDS = 60_000
_SNAPSHOT = sa.text("select pg_export_snapshot(), now()")
_OPTIONS = ("--format=custom", "--no-owner", "--no-privileges", "--no-password")


@dataclass(frozen=True, slots=True)
class BackupSource:
    """The database, how pg_dump reaches it, and where pg_dump is searched."""

    database: Database
    target: LibpqTarget
    folders: Sequence[Path]
    secret: SecretKey


async def create_backup(source: BackupSource, file: Path) -> Manifest:
    """Write a backup to a new file, which appears when it is complete and verified.

    Raises BackupError, StoreUnavailable.
    """
    try:
        with _private_file(file) as draft:
            manifest = await _write(source, draft)
            await asyncio.to_thread(_publish, draft, file)
    except OSError as error:
        raise BackupError(f"{file} cannot be written: {error.strerror}") from error
    return manifest


@contextmanager
def _private_file(file: Path) -> Iterator[Path]:
    """Create a draft of a new file that only its owner can read; remove it afterwards.

    Raises BackupError if the file exists.
    """
    if file.exists():
        raise BackupError(f"{file} exists: choose the name of a new file")
    draft = file.with_name(f"{file.name}.{os.getpid()}.partial")
    draft.unlink(missing_ok=True)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    os.close(os.open(draft, flags, 0o600))
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


async def _write(source: BackupSource, draft: Path) -> Manifest:
    async with _snapshot(source.database) as (connection, snapshot, now):
        about, revision = await describe(connection), await revision_of(connection)
        if not revision:
            raise BackupError("the database has no schema of this service to back up")
        programs = await find_programs(source.folders, about.server_major)
        dumping = asyncio.create_task(_dump(source, programs, about, snapshot, draft))
        try:
            rows = await count_rows(connection, about.schema)
            await dumping
        finally:
            dumping.cancel()
            await asyncio.wait([dumping])  # until pg_dump has ended
    size, sha256 = await asyncio.to_thread(digest, draft)
    manifest = Manifest(
        created_at=now,
        revision=revision,
        schema=about.schema,
        server_major=about.server_major,
        program_major=programs.major,
        rows=rows,
        dump_bytes=size,
        dump_sha256=sha256,
    )
    await asyncio.to_thread(append_manifest, draft, manifest, source.secret)
    await programs.read_whole(source.target, draft)
    return await asyncio.to_thread(read_manifest, draft, source.secret)


@asynccontextmanager
async def _snapshot(
    database: Database,
) -> AsyncIterator[tuple[AsyncConnection, str, datetime]]:
    """Return a connection, the name of its snapshot, and the time of the snapshot."""
    async with database.session() as connection:
        await connection.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        await disable_timeouts(connection)
        name, now = (await connection.execute(_SNAPSHOT)).one()
        yield connection, name, now


async def _dump(
    source: BackupSource, programs: Programs, about: About, snapshot: str, draft: Path
) -> None:
    pattern = about.schema.replace('"', '""')
    await programs.dump(
        source.target,
        f"--dbname={source.target.url}",
        *_OPTIONS,
        f"--lock-wait-timeout={LOCK_WAIT_MILLISECONDS}",
        f'--schema="{pattern}"',
        f"--snapshot={snapshot}",
        f"--file={draft}",
    )


def _publish(draft: Path, file: Path) -> None:
    """Give the file its name, and write the name to the disk."""
    draft.rename(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
