"""`academy migrate --check` and `--sql`: what an upgrade would do, without doing it."""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from server.store import migrate
from server.store.connections.connect import Database
from server.store.migrations.script import script
from tests.command_server import CommandServer

Result = subprocess.CompletedProcess[str]
Academy = Callable[..., Awaitable[Result]]


@pytest.fixture
def academy(commands: CommandServer) -> Academy:
    """Return a function that runs `academy migrate` with a database, or none."""

    async def run_command(database_url: str, *options: str) -> Result:
        env = {"STATE_DIR": "/nonexistent"}
        if database_url:
            env["DATABASE_URL"] = database_url
        return await asyncio.to_thread(commands.run, ("migrate", *options), env)

    return run_command


async def revision_of(database_url: str) -> str:
    database = Database(database_url)
    revision = await migrate.current(database)
    await database.close()
    return revision


async def test_check_of_the_newest_schema_succeeds(
    database_url: str, academy: Academy
) -> None:
    result = await academy(database_url, "--check")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"the database schema is at revision {migrate.newest()}\n"


@pytest.mark.parametrize("revision", ["", "0017"])
async def test_check_of_an_older_schema_names_what_is_missing(
    empty: str, academy: Academy, revision: str
) -> None:
    if revision:
        await migrate.upgrade(Database(empty), revision)
    result = await academy(empty, "--check")
    assert result.returncode == 1
    assert f"revision {revision or 'none'}, behind this release" in result.stdout
    assert "\n  0018  Each queue of the outbox is read in its own order." in (
        result.stdout
    )
    assert ("\n  0017  " in result.stdout) is (revision == "")
    assert await revision_of(empty) == revision


async def test_check_of_a_newer_schema_succeeds_and_says_so(
    database_url: str, admin: AsyncEngine, academy: Academy
) -> None:
    database = Database(database_url)
    async with database.transaction() as connection:
        statement = "update alembic_version set version_num = '9999'"
        await connection.execute(sa.text(statement))
    await database.close()
    result = await academy(database_url, "--check")
    assert result.returncode == 0
    assert "revision 9999, newer than this release" in result.stdout


async def test_sql_is_printed_and_not_run(empty: str, academy: Academy) -> None:
    await migrate.upgrade(Database(empty), "0017")
    result = await academy(empty, "--sql")
    assert result.returncode == 0, result.stderr
    assert result.stdout == script("0017")
    assert await revision_of(empty) == "0017"


async def test_sql_without_a_database_is_that_of_the_whole_schema(
    academy: Academy,
) -> None:
    result = await academy("", "--sql")
    assert result.returncode == 0, result.stderr
    assert result.stdout == script("")


async def test_check_and_sql_exclude_each_other(academy: Academy) -> None:
    result = await academy("", "--check", "--sql")
    assert result.returncode == 2
    assert "--check and --sql exclude each other" in result.stderr
