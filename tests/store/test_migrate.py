"""Migrations: concurrent runs, the resulting schema, and the data they fill in."""

import asyncio

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncEngine

from server.store import migrate
from server.store.connections.connect import Database
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

    def differences(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_published_posts_get_the_best_known_publication(
    servers: Servers, admin: AsyncEngine
) -> None:
    """That of their event if it is in the outbox, otherwise their creation."""
    await run(admin, "create database before_0013")
    database = Database(url_of(servers, "before_0013"))
    await migrate.upgrade(database, "0012")
    for statement in (
        "insert into users (email, username, username_folded, hashed_password, role,"
        " created_at, updated_at) values ('a@x.co', 'a', 'a', '', 1, now(), now())",
        "insert into posts (user_id, title, body, state, created_at, updated_at)"
        " select 1, title, '', state, '2026-01-01Z', '2026-01-09Z' from"
        " (values ('old', 2), ('late', 2), ('draft', 1)) posts (title, state)",
        "insert into outbox (kind, user_id, payload, created_at)"
        " select kind, 1, jsonb_build_object('post', 2), at::timestamptz from (values"
        " ('post.published', '2026-01-05Z'), ('post.published', '2026-01-06Z'),"
        " ('post.withdrawn', '2026-01-02Z')) events (kind, at)",
    ):
        async with database.transaction() as connection:
            await connection.execute(sa.text(statement))
    await migrate.upgrade(database)
    query = sa.text(
        "select title, (published_at at time zone 'utc')::date::text as day from posts"
    )
    async with database.reading() as connection:
        days = {row.title: row.day for row in await connection.execute(query)}
    await database.close()
    await run(admin, "drop database before_0013 with (force)")
    assert days == {"old": "2026-01-01", "late": "2026-01-05", "draft": None}
