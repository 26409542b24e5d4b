"""Bringing a database to the newest schema; several processes may try at once."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from server.store.connect import Database

_LOCK = 7_061_001  # whoever comes second waits, and finds nothing left to do


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def newest() -> str:
    """Give the newest revision that this code knows."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def _upgrade(connection: sa.Connection) -> None:
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def upgrade(url: str) -> None:
    """Run what is missing, in one transaction. Raises StoreUnavailable."""
    async with Database(url).alone(transaction=True) as connection:
        await connection.run_sync(_upgrade)


async def behind(url: str) -> bool:
    """Tell whether the database lacks a migration; a newer one than ours does not."""
    known = {
        s.revision for s in ScriptDirectory.from_config(_config()).walk_revisions()
    }
    present = await current(url)
    return present != newest() and (not present or present in known)


async def current(url: str) -> str:
    """Give the database's revision, "" if it has none. Raises StoreUnavailable."""
    async with Database(url).alone() as connection:
        return await connection.run_sync(
            lambda c: MigrationContext.configure(c).get_current_revision() or ""
        )
