"""What the commands print when the database refuses them: one line, and what to do."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from server.cli.monitoring.findings import Finding
from server.cli.monitoring.replica_check import check_replica
from server.config import load
from server.store import migrate
from server.store.connections.connect import Database
from tests.command_server import CommandServer
from tests.conftest import run
from tests.processes import FREE_PORTS

ADMIN = ("admin", "create", "--email", "ana@x.co", "--username", "ana")
COMMANDS = [("migrate",), ("serve",), ("doctor",), ADMIN]
READ_ONLY_COMMANDS = [("migrate", "--check"), ("migrate", "--sql")]


@pytest_asyncio.fixture
async def role(admin: AsyncEngine) -> AsyncIterator[str]:
    """Create a role that may log in and nothing else."""
    name = f"limited_{uuid.uuid4().hex[:8]}"
    await run(admin, f"create role {name} login password 'Blue7horse'")
    yield name
    await run(admin, f"drop role {name}")


async def test_doctor_names_missing_grant_of_the_replica(
    database_url: str, role: str
) -> None:
    """The replica may be read by a role of its own, which must be granted that."""

    async def checked() -> Finding:
        settings = load(database_read_url=url_with(database_url, username=role))
        primary = Database(database_url)
        try:
            (finding,) = await check_replica(settings, primary)
        finally:
            await primary.close()
        return finding

    grant = f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{role}"'
    refused = await checked()
    assert not refused.ok
    assert "permission denied to read audit_events" in refused.result
    assert grant in refused.advice
    database = Database(database_url)
    async with database.transaction() as connection:
        await connection.execute(sa.text(grant))
    granted = await checked()
    async with database.transaction() as connection:
        await connection.execute(sa.text(f"drop owned by {role}"))
    await database.close()
    assert granted.ok


def url_with(url: str, **parts: Any) -> str:
    return sa.make_url(url).set(**parts).render_as_string(hide_password=False)


Output = Callable[[tuple[str, ...], str], Awaitable[str]]


@pytest.fixture
def output(commands: CommandServer, redis_url: str) -> Output:
    """Return a function that runs a command that must fail and returns its output."""

    async def run_command(command: tuple[str, ...], database_url: str) -> str:
        env = {
            "SECRET_KEY": "0123456789abcdef" * 2,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "STATE_DIR": "/nonexistent",
            **FREE_PORTS,
        }
        result = await asyncio.to_thread(commands.run, command, env, "Green8horse\n")
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        if command != ("doctor",):
            assert result.stderr.count("\n") == 1
        return result.stdout + result.stderr

    return run_command


async def test_migrate_names_missing_grant_on_schema(
    empty: str, role: str, output: Output
) -> None:
    printed = await output(("migrate",), url_with(empty, username=role))
    assert f'GRANT CREATE ON SCHEMA public TO "{role}"' in printed


async def test_migrate_names_missing_grant_of_usage(
    empty: str, role: str, output: Output
) -> None:
    """Without it, Postgres finds no schema, and does not say why."""
    database = Database(empty)
    async with database.transaction() as connection:
        revoke = sa.text("revoke usage on schema public from public")
        await connection.execute(revoke)
    await database.close()
    printed = await output(("migrate",), url_with(empty, username=role))
    assert "GRANT USAGE, CREATE ON SCHEMA public TO the role" in printed


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
async def test_command_names_missing_grant_to_connect(
    empty: str, admin: AsyncEngine, role: str, output: Output, command: tuple[str, ...]
) -> None:
    name = sa.make_url(empty).database
    await run(admin, f"revoke connect on database {name} from public")
    printed = await output(command, url_with(empty, username=role))
    assert f'GRANT CONNECT ON DATABASE <name> TO "{role}"' in printed


@pytest.mark.parametrize("command", [*COMMANDS, *READ_ONLY_COMMANDS], ids=" ".join)
async def test_command_names_missing_grant_on_table(
    database_url: str, role: str, output: Output, command: tuple[str, ...]
) -> None:
    printed = await output(command, url_with(database_url, username=role))
    assert "permission denied for table" in printed
    assert "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES" in printed
    assert f'TO "{role}"' in printed


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
async def test_command_names_missing_database(
    database_url: str, output: Output, command: tuple[str, ...]
) -> None:
    url = url_with(database_url, database="nowhere")
    printed = await output(command, url)
    assert 'database "nowhere" does not exist: create it' in printed


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
async def test_command_names_refused_database_user(
    database_url: str, output: Output, command: tuple[str, ...]
) -> None:
    url = url_with(database_url, username="unknown", password="hunter2")
    printed = await output(command, url)
    assert "correct the user and the password in DATABASE_URL" in printed
    assert "hunter2" not in printed


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
async def test_command_names_read_only_database(
    empty: str, admin: AsyncEngine, output: Output, command: tuple[str, ...]
) -> None:
    if command != ("migrate",):
        await migrate.upgrade(Database(empty))
    name = sa.make_url(empty).database
    await run(admin, f"alter database {name} set default_transaction_read_only = on")
    printed = await output(command, empty)
    assert "this server is read-only: set DATABASE_URL to the primary" in printed


@pytest.mark.parametrize(
    "command", [("migrate",), *READ_ONLY_COMMANDS, ("doctor",), ADMIN], ids=" ".join
)
async def test_command_names_unreachable_database(
    output: Output, command: tuple[str, ...]
) -> None:
    url = "postgresql://ana:hunter2@127.0.0.1:1/none"
    printed = await output(command, url)
    assert "no connection to Postgres (Connection refused)" in printed
    assert "hunter2" not in printed


async def test_command_names_unreadable_certificate_file(output: Output) -> None:
    url = "postgresql://h/d?sslmode=verify-full&sslrootcert=/nonexistent"
    printed = await output(("migrate",), url)
    assert "DATABASE_URL: sslrootcert names a file that cannot be read" in printed
