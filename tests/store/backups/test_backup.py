"""Making a backup: a complete file or none, and no password where others see it."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from server.composition.backups import backup_source
from server.config import ConfigurationError
from server.store.backups import backup as module
from server.store.backups.contents import count_rows
from server.store.backups.errors import BackupError
from server.store.backups.libpq import libpq_target
from server.store.backups.programs import find_programs
from tests.backups import Backups
from tests.store.conftest import StoresUnderTest
from tests.store.test_users import new

ROOT = Path(__file__).parents[3]
PASSWORD = "Green horse/8"
Program = Callable[[str], Path]


@pytest.fixture
def fake_programs(tmp_path: Path) -> Program:
    """Return a function that makes a folder in which pg_dump is a shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(script: str) -> Path:
        for name, body in (("pg_dump", script), ("pg_restore", "exit 0")):
            program = folder / name
            program.write_text(
                '#!/bin/sh\nif [ "$1" = --version ]; then\n'
                f"echo '{name} (PostgreSQL) 99.1'; exit 0\nfi\n{body}\n"
            )
            program.chmod(0o755)
        return folder

    return make


async def test_backup_has_rows_of_every_table(
    backups: Backups,
    real_stores: StoresUnderTest,
    database_url: str,
    tmp_path: Path,
) -> None:
    await real_stores.users.add(new("ana"))
    file = tmp_path / "backup"
    manifest = await backups.back_up(database_url, file)
    assert manifest.rows["users"] == 1
    assert manifest.rows["alembic_version"] == 1
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["backup"]
    with pytest.raises(BackupError, match="exists"):
        await backups.back_up(database_url, file)


async def test_rows_that_are_written_during_the_dump_are_not_counted(
    backups: Backups,
    real_stores: StoresUnderTest,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The dump and the counts are of one snapshot: the restored counts are equal."""

    async def count_later(connection: object, schema: str) -> object:
        await real_stores.users.add(new("ana"))
        return await count_rows(connection, schema)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "count_rows", count_later)
    manifest = await backups.back_up(database_url, tmp_path / "backup")
    assert manifest.rows["users"] == 0


async def test_backup_of_empty_database_is_refused(
    backups: Backups, empty_url: str, tmp_path: Path
) -> None:
    with pytest.raises(BackupError, match="no schema of this service"):
        await backups.back_up(empty_url, tmp_path / "backup")


async def test_full_disk_leaves_no_file(
    backups: Backups,
    database_url: str,
    tmp_path: Path,
    fake_programs: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While pg_dump writes, and while the manifest is written."""
    cause = "could not write to output file: No space left on device"
    pg_bin = fake_programs(f"echo 'pg_dump: error: {cause}' >&2; exit 1")
    file = tmp_path / "files" / "backup"
    file.parent.mkdir()
    with pytest.raises(BackupError, match=cause):
        await backups.back_up(database_url, file, pg_bin=pg_bin)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "append_manifest", fail)
    with pytest.raises(BackupError, match="cannot be written: No space left"):
        await backups.back_up(database_url, file)
    assert not os.listdir(file.parent)


async def test_killed_backup_leaves_no_complete_file(
    backups: Backups, database_url: str, tmp_path: Path, fake_programs: Program
) -> None:
    """Killed while pg_dump is running."""
    pipe, file = tmp_path / "started", tmp_path / "backup"
    os.mkfifo(pipe)
    pg_bin = fake_programs(f"echo dumping > {pipe}; exec sleep 60")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "backup", str(file)),
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database_url,
            "SECRET_KEY": "0123456789abcdef" * 2,
            "PG_BIN": str(pg_bin),
        },
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    reading = asyncio.create_task(asyncio.to_thread(pipe.read_text))
    ending = asyncio.create_task(process.communicate())
    await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
    if ending.done():
        os.close(os.open(pipe, os.O_RDWR))  # the reader waits for a writer
        pytest.fail(str(ending.result()))
    os.killpg(process.pid, signal.SIGKILL)
    await ending
    assert "backup" not in os.listdir(tmp_path)


async def test_password_is_only_in_the_environment(
    backups: Backups,
    database_url: str,
    tmp_path: Path,
    fake_programs: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMTP_URL", "smtp://u:secret@mail")
    seen, seen_environment = tmp_path / "seen", tmp_path / "environment"
    pg_bin = fake_programs(
        f'echo "$@" > {seen}; env > {seen_environment}\n'
        'echo "pg_dump: error: wrong password $PGPASSWORD" >&2; exit 1'
    )
    url = sa.make_url(database_url).set(password=PASSWORD)
    with pytest.raises(BackupError) as raised:
        await backups.back_up(
            url.render_as_string(hide_password=False), tmp_path / "b", pg_bin=pg_bin
        )
    assert str(raised.value).endswith("wrong password ***")
    assert "blatam@" in seen.read_text()
    assert "Green" not in seen.read_text()
    environment = seen_environment.read_text()
    assert f"PGPASSWORD={PASSWORD}\n" in environment
    assert "SMTP_URL" not in environment


@pytest.mark.parametrize(
    ("url", "expected", "password"),
    [
        ("postgresql://u:p%40@h:5/d?sslmode=require", "u@h:5/d?sslmode=require", "p@"),
        ("postgresql+asyncpg://u@/d?host=/run", "u@/d?host=%2Frun", None),
        (
            "postgres://h/d?user=u&password=p&ssl=require",
            "h/d?user=u&sslmode=require",
            "p",
        ),
    ],
)
def test_libpq_target(
    url: str, expected: str, password: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    target = libpq_target(url)
    assert target.url == f"postgresql://{expected}"
    assert target.environment.get("PGPASSWORD") == password
    assert "p@" not in repr(target)


def test_secret_that_only_the_command_line_could_hold_is_refused() -> None:
    with pytest.raises(BackupError, match="sslpassword"):
        libpq_target("postgresql://h/d?sslkey=/k&sslpassword=x")


async def test_missing_programs_are_named(
    tmp_path: Path, fake_programs: Program
) -> None:
    folder = fake_programs("exit 0")
    with pytest.raises(BackupError, match=r"99 in .* install postgresql-client-100"):
        await find_programs([tmp_path, folder], 100)
    assert (await find_programs([tmp_path, folder], 18)).folder == folder


def test_pg_bin_without_programs_is_named(tmp_path: Path) -> None:
    settings = Backups(tmp_path, "redis://h").settings("postgresql://h/d")
    expected = f"PG_BIN={tmp_path} has no pg_dump: set it to the folder that contains"
    with pytest.raises(ConfigurationError, match=re.escape(expected)):
        backup_source(settings, None)


def test_pooler_is_refused(tmp_path: Path) -> None:
    backups = Backups(tmp_path, "redis://h")
    settings = backups.settings("postgresql://h/d", database_pooler="transaction")
    with pytest.raises(ConfigurationError, match="Postgres itself"):
        backup_source(settings, None)


async def test_dump_is_readable_by_pg_restore_alone(
    backups: Backups, database_url: str, postgres_programs: Path, tmp_path: Path
) -> None:
    """Without this service, with what follows the dump in the file."""
    file = tmp_path / "backup"
    await backups.back_up(database_url, file)
    process = await asyncio.create_subprocess_exec(
        postgres_programs / "pg_restore", "--list", file, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert b"TABLE DATA public users" in output
