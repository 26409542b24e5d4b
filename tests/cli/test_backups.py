"""`academy backup`, `restore` and `complete-restore`: what they print."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from server.cli import backups as module
from server.cli import embedded
from server.config import load
from server.store import migrate
from server.store.backups.errors import BackupError
from server.store.backups.previous_schema import marked_unfinished
from tests.backups import opened, usernames
from tests.command_server import CommandServer, command_server
from tests.running import SECRET


@pytest.fixture(scope="module")
def commands() -> Iterator[CommandServer]:
    with command_server() as server:
        yield server


async def test_commands_back_up_restore_and_complete(
    commands: CommandServer,
    postgres_programs: Path,
    database_url: str,
    empty_url: str,
    redis_url: str,
    tmp_path: Path,
) -> None:
    user_id = await add_ana(database_url)
    log = tmp_path / "erasures"
    log.write_text(f"{user_id} 2999-01-02T12:00:00.000000Z\n7")
    file = str(tmp_path / "backup")
    env = {
        "SECRET_KEY": SECRET,
        "REDIS_URL": redis_url,
        "PG_BIN": str(postgres_programs),
        "STATE_DIR": "/nonexistent",
    }

    async def run(url: str, *command: str) -> tuple[str, str]:
        """Return the exit status with the output, and the errors."""
        values = {**env, "DATABASE_URL": url}
        result = await asyncio.to_thread(commands.run, command, values)
        assert "Traceback" not in result.stderr
        return f"{result.returncode} {result.stdout}", result.stderr

    output, _ = await run(database_url, "backup", file)
    assert output.startswith("0 backed up ")
    output, errors = await run(database_url, "restore", file)
    assert output == "1 "
    assert "is not empty: with --replace" in errors
    output, errors = await run(empty_url, "restore", file)
    assert output.startswith("0 restored ")
    assert "no erasure log: users who were erased" in errors
    assert await usernames(empty_url) == ["ana"]
    options = ("--erasure-log", str(log), "--end-sessions")
    output, errors = await run(empty_url, "complete-restore", *options)
    assert (output, errors) == (
        "0 users erased again: 1 (in the erasure log: 1)\nsessions ended: 0\n",
        "",
    )
    assert await usernames(empty_url) == []
    async with opened(empty_url) as database:
        with pytest.raises(BackupError):  # the command is interrupted
            async with marked_unfinished(database, interrupted):
                pass
        output, _ = await run(empty_url, "complete-restore", *options)
        assert "erased again: 0" in output
        assert not await migrate.is_behind(database)
    damaged = ("--erasure-log", os.devnull, "--erasure-log", file)
    output, errors = await run(empty_url, "complete-restore", *damaged)
    assert output == "1 "
    assert "line 1 is damaged" in errors


async def interrupted() -> None:
    raise BackupError


async def add_ana(url: str) -> int:
    statement = sa.text(
        "insert into users (email, username, username_folded, hashed_password, role,"
        " created_at, updated_at) values ('a', 'ana', 'ana', '', 1, now(), now())"
        " returning id"
    )
    async with opened(url) as database, database.transaction() as connection:
        return int((await connection.execute(statement)).scalar_one())


def test_restore_without_urls_starts_the_servers_of_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They run only while `academy up` does, which has to be stopped."""
    events = []

    class Servers:
        def __init__(self, folder: Path) -> None:
            assert folder == tmp_path

        def start_postgres(self) -> str:
            events.append("postgres")
            return "postgresql://h/d"

        def start_valkey(self) -> str:
            events.append("valkey")
            return "redis://h"

        def stop(self) -> None:
            events.append("stop")

    monkeypatch.setattr(embedded, "EmbeddedServers", Servers)
    settings = load(state_dir=tmp_path, database_url=None, redis_url=None)
    with module._servers(settings) as served:
        assert served.database_url
        assert served.redis_url
        assert served.secret_key
    assert events == ["postgres", "valkey", "stop"]
