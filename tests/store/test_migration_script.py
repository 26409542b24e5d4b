"""`academy migrate --sql`: psql runs the script, and the result is that of upgrade."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from server.embedded.wheels import postgres_binaries
from server.store import migrate
from server.store.connections.connect import Database
from server.store.migrations import steps
from server.store.migrations.script import script
from tests.conftest import Servers, url_of
from tests.store.test_migrate import (
    ADD_POST,
    ADD_USER,
    INVALID_INDEXES,
    TRIGGERS,
    differences,
    empty_database,
    value,
)

ADD_USERS = (
    "insert into users (email, username, username_folded, hashed_password, role,"
    " created_at, updated_at) select n || '@x.co', n, n, '', 1, now(), now()"
    " from generate_series(1, 7) n"
)
ADVISORY_LOCK = "select pg_advisory_lock(7061001)"
SECONDS = 30


@pytest.fixture(scope="module")
def psql(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of psql: the system's, or that of the embedded Postgres."""
    if installed := shutil.which("psql"):
        return installed
    path = postgres_binaries(tmp_path_factory.mktemp("postgres")) / "psql"
    if not path.exists():
        pytest.skip("psql is not installed (apt-get install postgresql-client)")
    return str(path)


async def output_of(psql: str, servers: Servers, text: str) -> tuple[int, str]:
    """Run a script in the database of `empty_database`; return exit code and errors."""
    url = url_of(servers, "fresh").replace("+asyncpg", "")
    process = await asyncio.create_subprocess_exec(
        *(psql, "-Xq", "-d", url),
        env={"LC_ALL": "C"},
        cwd=Path("/"),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(SECONDS):
        _, errors = await process.communicate(text.encode())
    return process.returncode or 0, errors.decode()


async def run_script(psql: str, servers: Servers, text: str) -> None:
    code, errors = await output_of(psql, servers, text)
    assert code == 0, errors


async def test_script_creates_the_schema(
    psql: str, servers: Servers, admin: AsyncEngine, database: Database
) -> None:
    async with empty_database(servers, admin) as fresh:
        await run_script(psql, servers, script(""))
        assert await migrate.current(fresh) == migrate.newest()
        assert await differences(fresh) == []
        assert await value(fresh, INVALID_INDEXES) == 0
        assert await value(fresh, TRIGGERS) == await value(database, TRIGGERS)


async def test_script_continues_from_a_revision(
    psql: str, servers: Servers, admin: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It migrates the data too, in batches."""
    monkeypatch.setattr(steps, "BATCH_SIZE", 3)
    async with empty_database(servers, admin, "0011") as database:
        await value(database, ADD_USERS)
        for _ in range(4):
            await value(database, ADD_POST)
        await run_script(psql, servers, script("0011"))
        assert await migrate.current(database) == migrate.required()
        assert await differences(database) == []
        assert await value(database, "select count(*) from user_analytics") == 7
        published = "select count(*) from posts where published_at = created_at"
        assert await value(database, published) == 4


async def test_script_replaces_an_invalid_index(
    psql: str, servers: Servers, admin: AsyncEngine
) -> None:
    async with empty_database(servers, admin, "0012") as database:
        await value(database, ADD_USER)
        for _ in range(2):
            await value(database, ADD_POST)
        with pytest.raises(sa.exc.IntegrityError):
            await value(
                database,
                "create unique index concurrently idx_posts_published_at"
                " on posts (user_id)",
            )
        await run_script(psql, servers, script("0012"))
        assert await value(database, INVALID_INDEXES) == 0
        assert await differences(database) == []


async def test_script_of_another_revision_changes_nothing(
    psql: str, servers: Servers, admin: AsyncEngine
) -> None:
    async with empty_database(servers, admin, "0012") as database:
        for revision, at in (("", "no revision"), ("0011", "revision 0011")):
            code, errors = await output_of(psql, servers, script(revision))
            assert code != 0
            assert f"this script is for a database at {at}" in errors
        assert await migrate.current(database) == "0012"


async def test_script_stops_while_another_process_migrates(
    psql: str, servers: Servers, admin: AsyncEngine
) -> None:
    async with empty_database(servers, admin) as database:
        async with database.session() as other:
            await other.execute(sa.text(ADVISORY_LOCK))
            code, errors = await output_of(psql, servers, script(""))
            assert code != 0
            assert "another process migrates this database" in errors
        assert await migrate.current(database) == ""


async def test_script_stops_at_a_lock_and_is_printed_again(
    psql: str, servers: Servers, admin: AsyncEngine
) -> None:
    """It waits for a lock as briefly as `academy migrate`."""
    async with empty_database(servers, admin, "0011") as database:
        await value(database, ADD_USER)
        async with database.session() as reader:
            await reader.execute(sa.text("select * from posts"))
            code, errors = await output_of(psql, servers, script("0011"))
            await reader.rollback()
        assert code != 0
        assert "canceling statement due to lock timeout" in errors
        revision = await migrate.current(database)
        assert revision == "0012"
        await run_script(psql, servers, script(revision))
        assert await differences(database) == []


def test_script_of_a_newer_database_is_empty() -> None:
    for revision in (migrate.newest(), "9999"):
        assert script(revision).startswith("-- the database lacks no migration")
        assert migrate.missing(revision) == []
