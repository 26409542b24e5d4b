"""Migrations: concurrent runs, interruptions, locks, the schema and the data."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncEngine

from server.domain.errors import StoreUnavailable
from server.store import migrate
from server.store.connections.connect import Database
from server.store.tables import metadata
from tests.conftest import Servers, run, url_of
from tests.store.counting import Injected

WRITES = 30
MAX_LOCK_WAIT = timedelta(seconds=2)
INVALID_INDEXES = "select count(*) from pg_index where not indisvalid"
TRIGGERS = "select count(*) from pg_trigger where not tgisinternal"
ADD_USER = (
    "insert into users (email, username, username_folded, hashed_password, role,"
    " created_at, updated_at) values ('a@x.co', 'a', 'a', '', 1, now(), now())"
)
ADD_POST = (
    "insert into posts (user_id, title, body, state, created_at, updated_at)"
    " values (1, 'title', '', 2, now(), now())"
)


@asynccontextmanager
async def empty_database(
    servers: Servers, admin: AsyncEngine, revision: str = ""
) -> AsyncIterator[Database]:
    """Yield a database without tables, or with those of a revision."""
    await run(admin, "create database fresh")
    database = Database(url_of(servers, "fresh"))
    try:
        if revision:
            await migrate.upgrade(database, revision)
        yield database
    finally:
        await database.close()
        await run(admin, "drop database fresh with (force)")


async def value(database: Database, statement: str) -> Any:
    async with database.reading() as connection:
        result = await connection.execute(sa.text(statement))
        return result.scalar_one() if result.returns_rows else None


async def test_concurrent_upgrades_run_each_migration_once(
    servers: Servers, admin: AsyncEngine
) -> None:
    async with empty_database(servers, admin) as database:
        assert await migrate.is_behind(database)
        await asyncio.gather(*(migrate.upgrade(database) for _ in range(4)))
        assert await migrate.current(database) == migrate.newest()
        assert not await migrate.is_behind(database)
        assert await differences(database) == []


async def triggers(database: Database) -> set[str]:
    names = "select array_agg(tgname::text) from pg_trigger where not tgisinternal"
    return set(await value(database, names) or [])


async def test_migrations_after_the_rollout_wait_for_its_end(
    servers: Servers, admin: AsyncEngine
) -> None:
    """Processes of the release before depend on what these migrations remove."""
    notifying = {"user_changed", "outbox_written"}
    async with empty_database(servers, admin, "0019") as database:
        assert await migrate.is_behind(database)
        await migrate.upgrade(database)
        assert await migrate.current(database) == migrate.required()
        assert not await migrate.is_behind(database)
        assert notifying < await triggers(database)
        await migrate.upgrade(database, after_rollout=True)
        assert await migrate.current(database) == migrate.newest()
        assert not await migrate.is_behind(database)
        assert notifying.isdisjoint(await triggers(database))


async def differences(database: Database) -> list[object]:
    """Return the differences between a database and tables.py that Alembic finds."""

    def compare(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    async with database.engine.connect() as connection:
        return await connection.run_sync(compare)


async def test_migrations_produce_the_declared_tables(database: Database) -> None:
    assert await differences(database) == []
    assert await value(database, INVALID_INDEXES) == 0


@contextmanager
def failing_at_statement(number: int) -> Iterator[None]:
    """Make the statement of this task with this number fail before it is sent."""
    statements: list[str] = []
    task = asyncio.current_task()

    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if asyncio.current_task() is not task:
            return  # a statement of a service that other tests share
        statements.append(statement)
        if len(statements) == number:
            raise Injected

    sa.event.listen(sa.Engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", fail)


async def test_interrupted_migrations_continue_where_they_ended(
    servers: Servers, admin: AsyncEngine, database: Database
) -> None:
    """Each attempt fails one statement later than the one before it."""
    attempts = 0
    async with empty_database(servers, admin, "0011") as fresh:
        while await migrate.current(fresh) != migrate.newest():
            attempts += 1
            try:
                with failing_at_statement(attempts):
                    await migrate.upgrade(fresh, after_rollout=True)
            except Injected:
                continue
        assert attempts > 10
        assert await differences(fresh) == []
        assert await value(fresh, INVALID_INDEXES) == 0
        assert await value(fresh, TRIGGERS) == await value(database, TRIGGERS)


async def test_migration_replaces_an_invalid_index(
    servers: Servers, admin: AsyncEngine
) -> None:
    """CREATE INDEX CONCURRENTLY leaves one when it is interrupted."""
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
        assert await value(database, INVALID_INDEXES) == 1
        await migrate.upgrade(database)
        assert await value(database, INVALID_INDEXES) == 0
        assert await differences(database) == []


async def test_waiting_migration_blocks_no_writes(
    servers: Servers, admin: AsyncEngine
) -> None:
    """A reader's transaction keeps a column from being added; others go on writing."""
    async with empty_database(servers, admin, "0012") as database:
        await value(database, ADD_USER)
        async with database.session() as reader:
            await reader.execute(sa.text("select * from posts"))
            migration = asyncio.create_task(migrate.upgrade(database))
            await until_blocked(database)
            for _ in range(WRITES):
                await value(database, ADD_POST)
                await asyncio.sleep(0.02)
            assert not migration.done()
            await reader.rollback()
        await migration
        assert await differences(database) == []
        published = "select count(*) from posts where published_at = created_at"
        assert await value(database, published) == WRITES


@contextmanager
def slow_statement(seconds: float, text: str) -> Iterator[None]:
    """Make statements with this text take longer."""

    def wait(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if text in statement:
            cursor.execute(f"select pg_sleep({seconds})")

    sa.event.listen(sa.Engine, "before_cursor_execute", wait)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", wait)


async def test_work_of_a_migration_is_no_waiting_for_locks(
    servers: Servers, admin: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that waits after long work has all the time to wait."""
    monkeypatch.setattr(migrate, "MAX_LOCK_WAIT", MAX_LOCK_WAIT)
    work = slow_statement(1.5 * MAX_LOCK_WAIT.total_seconds(), "ADD COLUMN")
    async with empty_database(servers, admin, "0012") as database:
        with work:
            async with database.session() as reader:
                await reader.execute(sa.text("select * from posts"))
                migration = asyncio.create_task(migrate.upgrade(database))
                await until_blocked(database)
                await asyncio.sleep(2 * migrate.LOCK_TIMEOUT.total_seconds())
                assert not migration.done()
                await reader.rollback()
            await migration
        assert await differences(database) == []


async def test_migration_gives_up_a_lock_that_is_never_free(
    servers: Servers, admin: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "MAX_LOCK_WAIT", MAX_LOCK_WAIT / 4)
    async with empty_database(servers, admin, "0012") as database:
        async with database.session() as reader:
            await reader.execute(sa.text("select * from posts"))
            with pytest.raises(StoreUnavailable):
                await migrate.upgrade(database)
            await reader.rollback()
        await migrate.upgrade(database)
        assert await differences(database) == []


async def until_blocked(database: Database) -> None:
    """Wait until another connection waits for a lock."""
    query = "select count(*) from pg_locks where not granted"
    async with asyncio.timeout(10):
        while not await value(database, query):  # noqa: ASYNC110 - asked of Postgres
            await asyncio.sleep(0.01)


async def test_published_posts_get_the_best_known_publication(
    servers: Servers, admin: AsyncEngine
) -> None:
    """That of their event if it is in the outbox, otherwise their creation."""
    async with empty_database(servers, admin, "0012") as database:
        for statement in (
            ADD_USER,
            "insert into posts (user_id, title, body, state, created_at, updated_at)"
            " select 1, title, '', state, '2026-01-01Z', '2026-01-09Z' from"
            " (values ('old', 2), ('late', 2), ('draft', 1)) posts (title, state)",
            "insert into outbox (kind, user_id, payload, created_at)"
            " select kind, 1, jsonb_build_object('post', 2), at::timestamptz from"
            " (values ('post.published', '2026-01-05Z'),"
            " ('post.published', '2026-01-06Z'), ('post.withdrawn', '2026-01-02Z'))"
            " events (kind, at)",
        ):
            await value(database, statement)
        await migrate.upgrade(database)
        days = await value(
            database,
            "select json_object_agg(title, (published_at at time zone 'utc')::date)"
            " from posts",
        )
    assert days == {"old": "2026-01-01", "late": "2026-01-05", "draft": None}


async def test_post_edited_during_the_migration_keeps_its_publication(
    servers: Servers, admin: AsyncEngine
) -> None:
    """The trigger leaves older posts to the batches that follow it."""
    async with empty_database(servers, admin, "0012") as database:
        await value(database, ADD_USER)
        await value(database, ADD_POST)
        statements: list[str] = []

        def edit(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if "from outbox where id" in statement:
                statements.append(statement)
                cursor.execute("update posts set updated_at = now() + interval '1 h'")

        sa.event.listen(sa.Engine, "before_cursor_execute", edit)
        try:
            await migrate.upgrade(database)
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", edit)
        assert statements
        kept = "select published_at = created_at from posts"
        assert await value(database, kept) is True
