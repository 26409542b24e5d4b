"""pg_dump and pg_restore: finding programs that fit the server, and running them."""

from __future__ import annotations

import asyncio
import os
import re
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from server.store.backups.errors import BackupError
from server.store.backups.libpq import LibpqTarget

PROGRAM_NAMES = ("pg_dump", "pg_restore")
_VERSION = re.compile(rb"\(PostgreSQL\) ([0-9]+)")
# Debian's wrapper in /usr/bin chooses a version by itself.
_WRAPPER = "pg_wrapper"
_INSTALLATIONS = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin")
_RESTORE_OPTIONS = (
    *("--single-transaction", "--exit-on-error", "--no-password"),
    *("--no-owner", "--no-privileges", "--no-tablespaces"),
)
# Further lines may contain values of rows.
_ERROR = re.compile(r"^(?:pg_dump|pg_restore): (?:error|fatal): (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Programs:
    """The folder of pg_dump and pg_restore of one major version."""

    folder: Path
    major: int

    async def dump(self, target: LibpqTarget, *options: str) -> None:
        """Run pg_dump. Raises BackupError."""
        await _run(self.folder / "pg_dump", target, *options)

    async def restore(self, target: LibpqTarget, schema: str, file: Path) -> None:
        """Restore a schema, which exists, in one transaction. Raises BackupError."""
        await _run(
            self.folder / "pg_restore",
            target,
            f"--dbname={target.url}",
            f"--schema={schema}",
            *_RESTORE_OPTIONS,
            str(file),
        )

    async def read_whole(self, target: LibpqTarget, file: Path) -> None:
        """Read a dump to its end, as pg_restore does. Raises BackupError."""
        program = self.folder / "pg_restore"
        await _run(program, target, f"--file={os.devnull}", str(file))


def search_path() -> list[Path]:
    """Return the folders of PATH and of installed packages."""
    folders = map(Path, filter(None, os.environ.get("PATH", "").split(os.pathsep)))
    installed = [p for pattern in _INSTALLATIONS for p in Path("/").glob(pattern)]
    return [*folders, *installed]


async def find_programs(folders: Sequence[Path], minimum: int) -> Programs:
    """Return the oldest programs in the folders that are new enough.

    pg_dump refuses a server that is newer than itself; an older format can be read by
    more programs. Raises BackupError if there are none.
    """
    candidates = [programs for f in folders if (programs := await _programs_in(f))]
    fitting = [programs for programs in candidates if programs.major >= minimum]
    if fitting:
        return min(fitting, key=lambda programs: programs.major)
    found = ", ".join(f"{p.major} in {p.folder}" for p in candidates) or "none"
    raise BackupError(
        f"pg_dump and pg_restore of Postgres {minimum} or newer are needed (found: "
        f"{found}): install postgresql-client-{minimum}, or set PG_BIN to the folder "
        "that contains them"
    )


async def _programs_in(folder: Path) -> Programs | None:
    """Return the programs of a folder, None if one of them is missing."""
    paths = [folder / name for name in PROGRAM_NAMES]
    if not all(os.access(path, os.X_OK) for path in paths):
        return None
    if any(path.resolve().name == _WRAPPER for path in paths):
        return None
    majors = [await _major(path) for path in paths]
    return Programs(folder, min(majors)) if all(majors) else None


async def _major(program: Path) -> int:
    """Return the major version of a program, 0 if it does not run."""
    with suppress(OSError):
        process = await asyncio.create_subprocess_exec(
            program, "--version", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL
        )
        output, _ = await process.communicate()
        if match := _VERSION.search(output):
            return int(match[1])
    return 0


async def _run(program: Path, target: LibpqTarget, *arguments: str) -> None:
    """Run a program to its end; it is killed if this task is cancelled."""
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        env=target.environment,
    )
    try:
        _, output = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return
    errors = _ERROR.findall(output.decode(errors="replace"))
    cause = errors[0] if errors else f"exit status {process.returncode}"
    raise BackupError(f"{program.name} has failed: {target.masked(cause)}")
