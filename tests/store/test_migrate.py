"""Migrations lead to the tables, whoever runs them and however often."""

import asyncio

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncEngine

from server.store import migrate
from server.store.connect import Database
from server.store.tables import metadata
from tests.conftest import Servers, run, url_of


async def test_several_processes_may_start_at_once(
    servers: Servers, admin: AsyncEngine
) -> None:
    await run(admin, "create database fresh")
    url = url_of(servers, "fresh")
    assert await migrate.behind(url)
    await asyncio.gather(*(migrate.upgrade(url) for _ in range(4)))
    assert await migrate.current(url) == migrate.newest()
    assert not await migrate.behind(url)
    await run(admin, "drop database fresh with (force)")


async def test_they_lead_to_the_tables(database: Database) -> None:
    """What Alembic would still add is nothing."""

    def missing(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    async with database.engine.connect() as connection:
        assert await connection.run_sync(missing) == []
