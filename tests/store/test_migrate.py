"""Migrations produce the tables, also when several processes run them."""

import asyncio

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncEngine

from server.store import migrate
from server.store.connect import Database
from server.store.tables import metadata
from tests.conftest import Servers, run, url_of


async def test_concurrent_upgrades_run_each_migration_once(
    servers: Servers, admin: AsyncEngine
) -> None:
    await run(admin, "create database fresh")
    fresh = Database(url_of(servers, "fresh"))
    assert await migrate.is_behind(fresh)
    await asyncio.gather(*(migrate.upgrade(fresh) for _ in range(4)))
    assert await migrate.current(fresh) == migrate.newest()
    assert not await migrate.is_behind(fresh)
    await run(admin, "drop database fresh with (force)")


async def test_migrations_produce_the_declared_tables(database: Database) -> None:
    """Alembic finds no difference between the database and tables.py."""

    def missing(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    async with database.engine.connect() as connection:
        assert await connection.run_sync(missing) == []
