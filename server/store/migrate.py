"""Upgrade the database schema; several processes may try at the same time."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from server.store.connections.connect import Database

_ADVISORY_LOCK = 7_061_001  # a second process waits, then has nothing left to do


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def newest() -> str:
    """Return the newest revision of this release."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def _upgrade(connection: sa.Connection) -> None:
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def upgrade(database: Database) -> None:
    """Run the missing migrations in one transaction. Raises StoreUnavailable."""
    async with database.alone(transaction=True) as connection:
        await connection.run_sync(_upgrade)


async def is_behind(database: Database) -> bool:
    """Return whether the database lacks a migration of this release.

    A database of a newer release is not behind. Raises StoreUnavailable.
    """
    scripts = ScriptDirectory.from_config(_config())
    known = {script.revision for script in scripts.walk_revisions()}
    revision = await current(database)
    return revision != newest() and (not revision or revision in known)


async def current(database: Database) -> str:
    """Return the database's revision, "" if it has none. Raises StoreUnavailable."""
    async with database.alone() as connection:
        return await connection.run_sync(
            lambda c: MigrationContext.configure(c).get_current_revision() or ""
        )
