"""`academy bench-seed`: its members can log in; it adds nothing unless it is told."""

import asyncio
import re
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2
from server.store.connections.connect import Database
from tests.command_server import CommandServer, command_server
from tests.conftest import ready
from tests.running import running

SEED = ("bench-seed", "--users", "20", "--sessions", "2", "--follows", "3")


@pytest.fixture(scope="module")
def commands() -> Iterator[CommandServer]:
    with command_server() as server:
        yield server


async def username(database_url: str) -> str:
    database = Database(database_url)
    async with database.reading() as connection:
        query = sa.text("select username from users where is_active limit 1")
        name = (await connection.execute(query)).scalar_one()
    await database.close()
    return str(name)


async def test_seeded_members_log_in_with_the_printed_password(
    commands: CommandServer, database_url: str, redis_url: str
) -> None:
    env = {"DATABASE_URL": database_url}
    seeded = await asyncio.to_thread(commands.run, SEED, env)
    assert seeded.returncode == 0, seeded.stderr
    assert re.search(r"^sessions +40 rows", seeded.stdout, re.MULTILINE)
    password = re.search(r"password of every member: (\S+)", seeded.stdout)
    assert password
    async with running(database_url, redis_url) as service:
        await ready(service)
        answer = await service.auth.Login(
            auth_pb2.LoginRequest(
                identifier=await username(database_url), password=password[1]
            )
        )
    assert answer.tokens.access_token


async def test_bench_seed_refuses_a_database_with_users(
    commands: CommandServer, database_url: str
) -> None:
    env = {"DATABASE_URL": database_url}
    first = await asyncio.to_thread(commands.run, SEED, env)
    assert first.returncode == 0, first.stderr
    refused = await asyncio.to_thread(commands.run, SEED, env)
    assert refused.returncode == 1
    assert refused.stderr.strip() == (
        "the database has users; --add adds members to them"
    )
    added = await asyncio.to_thread(commands.run, (*SEED, "--add"), env)
    assert re.search(r"^users +40 rows", added.stdout, re.MULTILINE)


async def test_bench_seed_refuses_a_schema_that_is_behind(
    commands: CommandServer, database_url: str
) -> None:
    database = Database(database_url)
    async with database.transaction() as connection:
        await connection.execute(
            sa.text("update alembic_version set version_num='0001'")
        )
    await database.close()
    refused = await asyncio.to_thread(
        commands.run, SEED, {"DATABASE_URL": database_url}
    )
    assert refused.returncode == 1
    assert "run academy migrate" in refused.stderr
