"""The databases of the settings, for commands that need nothing else."""

from __future__ import annotations

from pydantic import SecretStr

from server.config import Pooler, Settings, require, text_of
from server.store.connections.connect import Database


def open_database(settings: Settings) -> Database:
    """Return the database of DATABASE_URL. Raises ConfigurationError without one."""
    require(settings, "database_url")
    return _open(settings, settings.database_url, "postgres")


def open_replica(settings: Settings) -> Database:
    """Return that of DATABASE_READ_URL. Raises ConfigurationError without one."""
    require(settings, "database_read_url")
    return _open(settings, settings.database_read_url, "replica")


def _open(settings: Settings, url: SecretStr | None, name: str) -> Database:
    pooler = settings.database_pooler is Pooler.TRANSACTION
    return Database(
        text_of(url),
        transaction_pooler=pooler,
        write_epochs=settings.database_write_epochs,
        name=name,
    )
