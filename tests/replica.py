"""A streaming replica of the tests' Postgres, from a copy of its data folder.

It is made by Postgres' functions for backups and started by the program of the
primary: the embedded wheels need not contain pg_basebackup or pg_ctl.
"""

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from server.embedded.postgres import (
    POSTGRES_OPTIONS,
    UNSAFE_OPTIONS,
    account_for,
    is_ready,
    shared_memory_option,
)
from server.embedded.processes import isolation
from tests.conftest import open_folder

START_SECONDS = 30
_IS_PAUSED = "select pg_get_wal_replay_pause_state() = 'paused'"
# A commit that is flushed although the primary has synchronous_commit=off.
_FLUSH = """
    set synchronous_commit to on;
    select pg_logical_emit_message(true, 'test', '');
"""
# what belongs to the primary's process, and its log, which the replica receives
_NOT_COPIED = ("postmaster.pid", "postmaster.opts", "pg_wal", "pg_replslot", ".s.*")
MAX_CONFLICTS = 50
# 0: a read never delays replay, so that a conflict cancels it at once
_OPTIONS = ("-c", "max_standby_streaming_delay=0", "-c", "hot_standby=on")


@dataclass
class StreamingReplica:
    """A replica: `url` is that of the primary's database on it."""

    url: str
    data: Path
    command: list[str]
    account: dict[str, Any] | None
    process: subprocess.Popen[bytes]

    def restart(self) -> None:
        """Start it again after `kill`."""
        self.process = _started(self.command, self.data, self.account)

    def kill(self) -> None:
        """End it without a word to its clients."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()

    async def execute(self, sql: str) -> Any:
        """Execute a statement on the replica; return the value of its first column.

        It is repeated after a conflict with replay, which ends a read at once.
        """
        for _ in range(MAX_CONFLICTS):
            with suppress(
                asyncpg.ConnectionDoesNotExistError, asyncpg.SerializationError
            ):
                return await execute(self.url, sql)
            await asyncio.sleep(0.01)
        return await execute(self.url, sql)

    async def pause(self) -> None:
        """Stop replaying what the primary writes."""
        await self.execute("select pg_wal_replay_pause()")
        async with asyncio.timeout(START_SECONDS):
            while not await self.execute(_IS_PAUSED):  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.01)

    async def resume(self) -> None:
        """Replay again."""
        await self.execute("select pg_wal_replay_resume()")

    async def replay(self, primary_url: str) -> None:
        """Wait until everything is replayed that the primary has written so far."""
        connection = await asyncpg.connect(_dsn(primary_url))
        try:
            await connection.execute(_FLUSH)
            position = await connection.fetchval("select pg_current_wal_lsn()::text")
        finally:
            await connection.close()
        replayed = f"select pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"
        async with asyncio.timeout(START_SECONDS):
            while not await self.execute(replayed):  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.01)

    async def promote(self) -> None:
        """Make it a primary."""
        await self.execute("select pg_promote()")


async def execute(url: str, sql: str) -> Any:
    """Execute a statement on a connection of its own; return its first value."""
    connection = await asyncpg.connect(_dsn(url))
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def _dsn(url: str) -> str:
    return url.replace("+asyncpg", "")


@asynccontextmanager
async def streaming_replica(primary_url: str) -> AsyncIterator[StreamingReplica]:
    """Run a replica of the server of this database."""
    if os.environ.get("TEST_DATABASE_URL"):
        pytest.skip("a replica needs the data folder of an embedded Postgres")
    with open_folder() as folder:
        data = folder / "data"
        primary_data = Path(await execute(primary_url, "show data_directory"))
        account = account_for(primary_data)
        await _back_up(primary_url, primary_data, data)
        command = _command(primary_data, data, primary_url)
        _hand_over(folder, account)
        url = sa.make_url(primary_url).set(query={"host": str(data)})
        process = _started(command, data, account)
        replica = StreamingReplica(
            url.render_as_string(hide_password=False), data, command, account, process
        )
        try:
            yield replica
        finally:
            replica.kill()


async def _back_up(url: str, source: Path, target: Path) -> None:
    """Copy the data folder of a running server.

    https://www.postgresql.org/docs/18/continuous-archiving.html
    """
    connection = await asyncpg.connect(_dsn(url))
    try:
        await connection.execute("select pg_backup_start('replica', fast => true)")
        await asyncio.to_thread(_copy, source, target)
        label = await connection.fetchval(
            "select labelfile from pg_backup_stop(wait_for_archive => false)"
        )
    finally:
        await connection.close()
    (target / "backup_label").write_text(label)
    (target / "standby.signal").touch()


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(
        source,
        target,
        ignore=shutil.ignore_patterns(*_NOT_COPIED),
        copy_function=_copy_unless_removed,
    )
    for name in ("pg_wal", "pg_replslot"):
        (target / name).mkdir(mode=0o700)


def _copy_unless_removed(source: str, target: str) -> None:
    """Copy a file; other tests drop databases meanwhile."""
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        return


def _command(primary_data: Path, data: Path, primary_url: str) -> list[str]:
    """Return the command; the first word of this file is the primary's program."""
    program = shlex.split((primary_data / "postmaster.opts").read_text())[0]
    url = sa.make_url(primary_url)
    conninfo = f"host={url.query['host']} user={url.username}"
    return [
        *(program, "-D", str(data), *POSTGRES_OPTIONS, *UNSAFE_OPTIONS),
        *(f"--unix_socket_directories={data}", shared_memory_option()),
        *("-c", f"primary_conninfo={conninfo}", *_OPTIONS),
    ]


def _hand_over(folder: Path, account: dict[str, Any] | None) -> None:
    """Give the files to the account that Postgres runs as."""
    (folder / "data").chmod(0o700)
    if account:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, account["user"], account["group"])


def _started(
    command: list[str], data: Path, account: dict[str, Any] | None
) -> subprocess.Popen[bytes]:
    with (data.parent / "replica.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **isolation(signal.SIGQUIT, account),
        )
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if is_ready(process, data):
            return process
        time.sleep(0.01)
    process.kill()
    raise RuntimeError((data.parent / "replica.log").read_text()[-2000:])
