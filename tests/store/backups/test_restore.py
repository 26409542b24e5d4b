"""Restoring a backup: everything is as it was, or the database is not touched."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa

from server.domain.clock import system_clock
from server.domain.credentials.revocations import Revocations
from server.domain.outbox.entries import EventType, NewEntry
from server.store import migrate
from server.store.accounts.erasure_log import MAX_USER_ID, DamagedErasureLog
from server.store.accounts.user_changes import UserChangeFeed
from server.store.accounts.user_reads import UserReads
from server.store.backups import previous_schema
from server.store.backups import restore as module
from server.store.backups.completion import SKIPPED_IDS, CompletionOptions
from server.store.backups.errors import BackupError
from server.store.backups.previous_schema import (
    RefuseOtherSessions,
    RestoreUnfinished,
    exclusive,
    marked_unfinished,
    put_back,
    set_aside,
)
from server.store.connections.connect import Database
from server.store.credentials.revocations import RevocationFeed
from server.store.outbox import PostgresOutbox
from server.store.redis.redis_client import redis_client
from tests.backups import Backups, opened, usernames

OTHER_SECRET = "fedcba9876543210" * 4
INSERT_USER = sa.text(
    "insert into users (email, username, username_folded, hashed_password, role,"
    " created_at, updated_at) values (:name, :name, :name, '', 1, now(), now())"
    " returning id"
)


async def add_user(url: str, name: str) -> int:
    async with opened(url) as database, database.transaction() as connection:
        return int((await connection.execute(INSERT_USER, {"name": name})).scalar_one())


async def execute(url: str, statement: str) -> list[sa.Row[tuple[object, ...]]]:
    async with opened(url) as database, database.alone() as connection:
        result = await connection.execute(sa.text(statement))
        return list(result.all()) if result.returns_rows else []


@pytest_asyncio.fixture
async def file(
    backups: Backups, database_url: str, tmp_path: Path
) -> AsyncIterator[Path]:
    """Return a backup with one user, ana."""
    await add_user(database_url, "ana")
    await backups.back_up(database_url, tmp_path / "backup")
    yield tmp_path / "backup"


async def test_restore_to_empty_database(
    backups: Backups, file: Path, empty_url: str
) -> None:
    await backups.restore(empty_url, file)
    assert await usernames(empty_url) == ["ana"]
    async with opened(empty_url) as database:
        assert not await migrate.is_behind(database)
        assert await migrate.current(database) == migrate.newest()
    schemas = "select nspname from pg_namespace where nspname ~ 'restore'"
    assert not await execute(empty_url, schemas)


async def test_replace_drops_what_it_names(
    backups: Backups, file: Path, database_url: str
) -> None:
    await add_user(database_url, "bea")
    await execute(database_url, "create table other (id int)")
    with pytest.raises(BackupError, match=r"not empty: with --replace.*users 2"):
        await backups.restore(database_url, file)
    assert await usernames(database_url) == ["ana", "bea"]
    await backups.restore(database_url, file, replace=True)
    assert await usernames(database_url) == ["ana"]
    assert await execute(database_url, "select to_regclass('other')") == [(None,)]


async def test_failed_restore_leaves_previous_content(
    backups: Backups, file: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restored rows are there already when a check fails."""
    await add_user(database_url, "bea")

    monkeypatch.setattr(module, "check_restored", failing)
    with pytest.raises(BackupError, match="injected"):
        await backups.restore(database_url, file, replace=True)
    assert await usernames(database_url) == ["ana", "bea"]
    async with opened(database_url) as database:
        assert not await migrate.is_behind(database)


async def test_other_secret_key_is_refused_at_once(
    backups: Backups, file: Path, database_url: str
) -> None:
    with pytest.raises(BackupError, match="another SECRET_KEY"):
        await backups.restore(database_url, file, replace=True, secret_key=OTHER_SECRET)
    assert await usernames(database_url) == ["ana"]


async def test_truncated_backup_is_refused_at_once(
    backups: Backups, file: Path, database_url: str
) -> None:
    os.truncate(file, os.stat(file).st_size - 1)
    with pytest.raises(BackupError, match="not a complete backup"):
        await backups.restore(database_url, file, replace=True)
    assert await usernames(database_url) == ["ana"]


async def test_database_in_use_is_refused(
    backups: Backups, file: Path, database_url: str
) -> None:
    async with opened(database_url) as database, database.session() as connection:
        await connection.execute(sa.text("select 1"))
        with pytest.raises(BackupError, match="1 other sessions use the database"):
            await backups.restore(database_url, file, replace=True)


async def failing(*_: object) -> None:
    raise BackupError("injected")


class Starting:
    """A process of the service that starts while a restore runs."""

    def __init__(self, url: str, patch: pytest.MonkeyPatch) -> None:
        self._url = url
        self._patch = patch
        self._stack = AsyncExitStack()
        # a session that remains is found at once
        patch.setattr(previous_schema, "_SESSION_CHECK_SECONDS", 0.02)

    def before(self, owner: object, name: str) -> None:
        """Open its session before the function of this name is called."""
        called = getattr(owner, name)

        async def start(*arguments: object) -> object:
            await self._connect()
            return await called(*arguments)

        self._patch.setattr(owner, name, start)

    async def _connect(self) -> None:
        database = await self._stack.enter_async_context(opened(self._url))
        session = await self._stack.enter_async_context(database.session())
        await session.execute(sa.text("select 1"))

    async def stop(self) -> None:
        self._patch.undo()
        await self._stack.aclose()


@pytest_asyncio.fixture
async def starting(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Starting]:
    starting = Starting(database_url, monkeypatch)
    yield starting
    await starting.stop()


async def test_process_that_starts_before_content_is_set_aside_is_noticed(
    backups: Backups, file: Path, database_url: str, starting: Starting
) -> None:
    """Nothing is renamed yet when it looks for an unfinished restore."""
    await add_user(database_url, "bea")
    starting.before(previous_schema, "set_aside")
    with pytest.raises(BackupError, match="1 other sessions use the database"):
        await backups.restore(database_url, file, replace=True)
    assert await usernames(database_url) == ["ana", "bea"]
    async with opened(database_url) as database:
        assert not await migrate.is_behind(database)


@pytest.mark.parametrize("fails", [False, True])
async def test_process_that_connects_later_keeps_both_contents(
    backups: Backups,
    file: Path,
    database_url: str,
    starting: Starting,
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    """It has started before, and may have answered that it changed something."""
    await add_user(database_url, "bea")
    if fails:
        monkeypatch.setattr(module, "complete_restore", failing)
    starting.before(module, "complete_restore")
    with pytest.raises(BackupError, match="1 other sessions use the database"):
        await backups.restore(database_url, file, replace=True)
    await starting.stop()
    assert await usernames(database_url) == ["ana"]
    previous = "select username from public_before_restore.users order by id"
    assert await execute(database_url, previous) == [("ana",), ("bea",)]
    async with opened(database_url) as database:
        with pytest.raises(RestoreUnfinished):
            await migrate.is_behind(database)
    await backups.restore(database_url, file, replace=True)
    assert await usernames(database_url) == ["ana"]


async def test_session_that_ends_meanwhile_is_no_longer_counted(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks are in one transaction, which would see the same sessions."""
    async with (
        opened(database_url) as other,
        opened(database_url) as database,
        AsyncExitStack() as stack,
    ):
        session = await stack.enter_async_context(other.session())
        await session.execute(sa.text("select 1"))
        sleep = asyncio.sleep

        async def close_and_sleep(seconds: float) -> None:
            await stack.aclose()
            await sleep(seconds)

        monkeypatch.setattr(asyncio, "sleep", close_and_sleep)
        async with exclusive(database):
            pass


async def test_recovered_database_is_not_served_before_it_is_completed(
    database_url: str,
) -> None:
    async with opened(database_url) as database:

        async def start() -> None:
            with pytest.raises(RestoreUnfinished):
                await migrate.is_behind(database)

        async with exclusive(database) as refuse_other_sessions:
            with pytest.raises(BackupError, match="injected"):
                await complete(database, refuse_other_sessions, failing)
            await start()
            await migrate.upgrade(database)  # it may be needed to complete it
            await complete(database, refuse_other_sessions, start)
        assert not await migrate.is_behind(database)


async def test_process_that_serves_from_a_recovered_database_is_noticed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has started before the database was marked, or connects only later."""
    monkeypatch.setattr(previous_schema, "_SESSION_CHECK_SECONDS", 0.02)
    async with (
        opened(database_url) as other,
        opened(database_url) as database,
        exclusive(database) as refuse_other_sessions,
    ):
        async with other.reading() as session:
            await session.execute(sa.text("select 1"))
            with pytest.raises(BackupError, match="1 other sessions"):
                await complete(database, refuse_other_sessions, failing)
        await other.engine.dispose()

        async def serve() -> None:
            async with other.reading() as session:
                await session.execute(sa.text("select 1"))

        with pytest.raises(BackupError, match="1 other sessions"):
            await complete(database, refuse_other_sessions, serve)
        with pytest.raises(RestoreUnfinished):
            await migrate.is_behind(database)


async def test_mark_in_a_backup_is_not_restored(
    backups: Backups, database_url: str, empty_url: str, tmp_path: Path
) -> None:
    """A database that was not completed was backed up."""
    async with (
        opened(database_url) as database,
        exclusive(database) as refuse_other_sessions,
    ):
        with pytest.raises(BackupError, match="injected"):
            await complete(database, refuse_other_sessions, failing)
    await backups.back_up(database_url, tmp_path / "marked")
    await backups.restore(empty_url, tmp_path / "marked")
    async with opened(empty_url) as database:
        assert not await migrate.is_behind(database)


async def complete(
    database: Database,
    refuse_other_sessions: RefuseOtherSessions,
    work: Callable[[], Awaitable[None]],
) -> None:
    """Mark the database as `academy complete-restore` does, during `work`."""
    async with marked_unfinished(database, refuse_other_sessions):
        await work()


async def test_redis_that_is_away_is_noticed_before_anything_is_dropped(
    backups: Backups, file: Path, database_url: str
) -> None:
    """Cached users of the lost time would be served otherwise."""
    backups.redis_url = "redis://127.0.0.1:1"
    with pytest.raises(BackupError, match="REDIS_URL"):
        await backups.restore(database_url, file, replace=True)
    assert await usernames(database_url) == ["ana"]


async def test_interrupted_restore_is_not_served_and_can_be_repeated(
    backups: Backups, file: Path, database_url: str
) -> None:
    """It was killed after pg_restore: the restored rows look complete."""
    await add_user(database_url, "bea")
    async with opened(database_url) as database:
        await set_aside(database, "public")
        await migrate.upgrade(database, in_restore=True)
        with pytest.raises(RestoreUnfinished):
            await migrate.is_behind(database)
        with pytest.raises(RestoreUnfinished):
            await migrate.upgrade(database)
    with pytest.raises(BackupError, match=r"with --replace.*users 2"):
        await backups.restore(database_url, file)
    await backups.restore(database_url, file, replace=True)
    assert await usernames(database_url) == ["ana"]


async def test_previous_content_can_be_put_back(database_url: str) -> None:
    await add_user(database_url, "ana")
    async with opened(database_url) as database:
        await set_aside(database, "public")
        await put_back(database, "public")
    assert await usernames(database_url) == ["ana"]


async def test_backup_of_older_schema_is_upgraded(
    backups: Backups, empty_url: str, database_url: str, tmp_path: Path
) -> None:
    async with opened(empty_url) as database:
        await migrate.upgrade(database, "0014")
    await add_user(empty_url, "ana")
    manifest = await backups.back_up(empty_url, tmp_path / "old")
    assert manifest.revision == "0014"
    erased = CompletionOptions({1: system_clock()})
    report = await backups.restore(database_url, tmp_path / "old", erased, replace=True)
    assert report.erased == 1
    async with opened(database_url) as database:
        assert await migrate.current(database) == migrate.required()


async def test_backup_of_newer_schema_is_refused(
    backups: Backups, database_url: str, empty_url: str, tmp_path: Path
) -> None:
    await execute(database_url, "update alembic_version set version_num = '9999'")
    await backups.back_up(database_url, tmp_path / "new")
    with pytest.raises(BackupError, match=r"newer release \(9999\)"):
        await backups.restore(empty_url, tmp_path / "new")


async def test_erasure_log_of_another_database_is_refused(
    backups: Backups, file: Path, database_url: str
) -> None:
    """It has an erasure of a user who did not exist at that time."""
    erasures = {1: system_clock() - timedelta(days=1)}
    with pytest.raises(DamagedErasureLog, match="another database"):
        await backups.restore(
            database_url, file, CompletionOptions(erasures), replace=True
        )
    assert await usernames(database_url) == ["ana"]


async def test_ids_of_the_lost_time_are_not_used_again(
    backups: Backups, file: Path, database_url: str
) -> None:
    """R30: tokens and logs of the lost time name users that do not exist."""
    lost = await add_user(database_url, "bea")
    await backups.restore(database_url, file, replace=True)
    assert await add_user(database_url, "eva") > lost + SKIPPED_IDS - 2


async def test_newest_id_that_the_erasure_log_permits_can_be_skipped(
    backups: Backups, file: Path, database_url: str
) -> None:
    options = CompletionOptions({MAX_USER_ID: system_clock()})
    await backups.restore(database_url, file, options, replace=True)
    assert await add_user(database_url, "eva") == MAX_USER_ID + SKIPPED_IDS + 1


async def test_pending_mails_are_kept_unless_discarded(
    backups: Backups, database_url: str, empty_url: str, tmp_path: Path
) -> None:
    async with opened(database_url) as database:
        user_id = await add_user(database_url, "ana")
        entries = [NewEntry(EventType.WELCOME, user_id)]
        entries.append(NewEntry(EventType.USER_CREATED, user_id))
        await PostgresOutbox(database).add(system_clock(), *entries)
    await backups.back_up(database_url, tmp_path / "backup")
    report = await backups.restore(empty_url, tmp_path / "backup")
    assert report.pending_mails == 1
    discarding = CompletionOptions({}, discard_mails=True)
    report = await backups.restore(
        empty_url, tmp_path / "backup", discarding, replace=True
    )
    assert report.pending_mails == 0
    kinds = await execute(empty_url, "select kind from outbox")
    assert kinds == [(EventType.USER_CREATED,)]


async def test_mailed_tokens_are_invalidated(
    backups: Backups, database_url: str, empty_url: str, tmp_path: Path
) -> None:
    """They may have been used in the lost time."""
    user_id = await add_user(database_url, "ana")
    await execute(
        database_url,
        "insert into mailed_tokens (digest, purpose, user_id, address, outbox_id,"
        f" created_at, expires_at) values ('d', 'reset', {user_id}, 'a', 1, now(),"
        " now() + interval '1 day')",
    )
    await backups.back_up(database_url, tmp_path / "backup")
    await backups.restore(empty_url, tmp_path / "backup")
    valid = "select 1 from mailed_tokens where used_at is null or expires_at > now()"
    assert not await execute(empty_url, valid)


async def test_streams_do_not_resume_in_the_lost_time(
    backups: Backups, file: Path, database_url: str
) -> None:
    """Transaction ids are used again after a restore, on a new server at least."""
    redis, clock = redis_client(backups.redis_url), system_clock
    async with opened(database_url) as database:
        feed = RevocationFeed(database, redis, Revocations(clock), clock)
        assert (await feed.resume_from(5))[0] == 5
    await backups.restore(database_url, file, replace=True)
    async with opened(database_url) as database:
        feed = RevocationFeed(database, redis, Revocations(clock), clock)
        assert (await feed.resume_from(5))[0] == 0
        changes = UserChangeFeed(database, UserReads(database))
        restored_at = await changes.restored_at()
    assert restored_at
    assert clock() - timedelta(minutes=1) < restored_at <= clock()
    await redis.aclose()


async def test_cached_users_of_the_lost_time_are_removed(
    backups: Backups, file: Path, database_url: str
) -> None:
    """Their versions are newer than those of the database."""
    redis = redis_client(backups.redis_url)
    keys = [f"user:{{{number}}}:shape" for number in range(1_200)]
    for key in keys:
        await redis.hset(key, "version", "9")
    await redis.set("rate:{user:1}", "1")
    await backups.restore(database_url, file, replace=True)
    assert await redis.keys("*") == [b"rate:{user:1}"]
    await redis.aclose()
