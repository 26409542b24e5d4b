"""Upgrade the database schema while the service runs, from one process at a time.

Each migration has its own transaction, or several (see migrations/steps.py). One that
waits for a lock would make all later calls wait behind it, so it gives up soon and is
run again.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TextIO

import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncConnection

from server.store.backups.previous_schema import refuse_unfinished_restore
from server.store.connections.connect import Database
from server.store.connections.faults import is_lock_conflict

log = structlog.get_logger()
# less than the lock timeout of calls, so that a waiting migration fails none of them
LOCK_TIMEOUT = timedelta(milliseconds=200)
RETRY_INTERVAL_SECONDS = 0.5
MAX_LOCK_WAIT = timedelta(minutes=10)  # of one statement, in all its attempts
ADVISORY_LOCK = 7_061_001
_LOCK = sa.text("select pg_try_advisory_xact_lock(:lock) as locked")
# Postgres 17 or newer has this setting.
_DISABLE_TRANSACTION_TIMEOUT = sa.text(
    "select set_config(name, '0', true) from pg_settings"
    " where name = 'transaction_timeout'"
)
# The last statement: it also ends the portal, and with it the snapshot, of a select.
_DISABLE_IDLE_TIMEOUT = sa.text("set local idle_in_transaction_session_timeout = 0")


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration: the revision that it leads to, and what it does."""

    revision: str
    description: str


def configuration(output: TextIO | None = None) -> Config:
    """Return Alembic's configuration; the SQL of its offline mode goes to `output`."""
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


@cache
def _scripts() -> ScriptDirectory:
    """Return the migrations of this release, which are read once."""
    return ScriptDirectory.from_config(configuration())


def newest() -> str:
    """Return the newest revision of this release."""
    return _scripts().get_current_head() or ""


def required() -> str:
    """Return the revision without which this release does not start.

    The migrations after it would make the release before return wrong results. They
    have `after_rollout = True` and are the last ones of the release.
    """
    script = _scripts().get_revision("head")
    while script and getattr(script.module, "after_rollout", False):
        script = _scripts().get_revision(str(script.down_revision))
    return script.revision if script else ""


def missing(revision: str, *, after_rollout: bool = False) -> list[Migration]:
    """Return the migrations that a database at this revision lacks, oldest first.

    They are those that this release requires; and those after a rollout if it is over,
    or if the revision is "", a database without tables, so that no process can use
    them. A database of a newer release, whose revision is unknown, lacks none.
    """
    last = newest() if after_rollout or not revision else required()
    migrations = [
        Migration(script.revision, script.doc)
        for script in reversed(list(_scripts().walk_revisions("base", last)))
    ]
    known = [migration.revision for migration in migrations]
    if revision in known:
        return migrations[known.index(revision) + 1 :]
    return migrations if not revision else []


def is_known(revision: str) -> bool:
    """Return whether this release has a revision."""
    return revision in {script.revision for script in _scripts().walk_revisions()}


async def upgrade(
    database: Database,
    revision: str = "",
    *,
    after_rollout: bool = False,
    in_restore: bool = False,
) -> None:
    """Run the missing migrations, or those up to a revision.

    Raises StoreUnavailable, RestoreUnfinished.

    What has committed when it fails or is killed remains, and is not run again.
    `in_restore` is for the restore itself.
    """
    if not in_restore:
        async with database.alone() as connection:
            await refuse_unfinished_restore(connection, marked=True)
    if not revision:
        lacking = missing(await current(database), after_rollout=after_rollout)
        if not lacking:
            return
        revision = lacking[-1].revision
    async with _locked(database), database.session() as connection:
        sa.event.listen(connection.sync_connection, "begin", _set_lock_timeout)
        waited: defaultdict[str | None, timedelta] = defaultdict(timedelta)
        while True:
            try:
                await connection.run_sync(_upgrade, revision)
                return
            except sa.exc.DBAPIError as error:
                # The steps before the statement may take long, and are no waiting.
                statement = error.statement
                if not is_lock_conflict(error) or waited[statement] > MAX_LOCK_WAIT:
                    raise
                log.info("migration waits for a lock", cause=str(error.orig))
            await connection.rollback()
            waited[statement] += LOCK_TIMEOUT + await _pause()


def _upgrade(connection: sa.Connection, revision: str) -> None:
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _set_lock_timeout(connection: sa.Connection) -> None:
    """Limit waits for locks, for this transaction: a pooler shares its session.

    CREATE INDEX CONCURRENTLY runs outside transactions. It may wait: nobody waits
    behind it.
    """
    if connection.get_isolation_level() != "AUTOCOMMIT":
        connection.exec_driver_sql(lock_timeout_statement())


def lock_timeout_statement() -> str:
    """Return the statement that limits waits for locks in a transaction."""
    milliseconds = LOCK_TIMEOUT / timedelta(milliseconds=1)
    return f"SET LOCAL lock_timeout = {milliseconds:.0f}"


@asynccontextmanager
async def _locked(database: Database) -> AsyncIterator[None]:
    """Hold the advisory lock of migrations in a transaction of its own.

    CREATE INDEX CONCURRENTLY waits for the end of every snapshot. So the transaction
    holds none, and the lock is polled: a statement that waits for it has a snapshot.
    """
    async with database.session() as connection:
        while not await _lock(connection):
            await connection.rollback()
            await _pause()
        await connection.execute(_DISABLE_TRANSACTION_TIMEOUT)
        await connection.execute(_DISABLE_IDLE_TIMEOUT)
        yield


async def _lock(connection: AsyncConnection) -> bool:
    result = await connection.execute(_LOCK, {"lock": ADVISORY_LOCK})
    return bool(result.scalar_one())


async def _pause() -> timedelta:
    """Sleep between two attempts; return how long."""
    seconds = RETRY_INTERVAL_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
    await asyncio.sleep(seconds)
    return timedelta(seconds=seconds)


async def is_behind(database: Database, *, marked: bool = False) -> bool:
    """Return whether the database lacks a migration that this release requires.

    A database of a newer release is not behind. `marked` permits a restore by other
    tools that is not completed yet. Raises StoreUnavailable, RestoreUnfinished.
    """
    async with database.alone() as connection:
        await refuse_unfinished_restore(connection, marked=marked)
    return bool(missing(await current(database)))


async def current(database: Database) -> str:
    """Return the database's revision, "" if it has none. Raises StoreUnavailable."""
    async with database.alone() as connection:
        return await connection.run_sync(
            lambda c: MigrationContext.configure(c).get_current_revision() or ""
        )
