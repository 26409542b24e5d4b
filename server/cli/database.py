"""The database of the settings, for commands that need nothing else."""

from __future__ import annotations

from server.config import Pooler, Settings, require, text_of
from server.store.connections.connect import Database


def open_database(settings: Settings) -> Database:
    """Return the database of DATABASE_URL. Raises ConfigurationError without one."""
    require(settings, "database_url")
    pooler = settings.database_pooler is Pooler.TRANSACTION
    return Database(
        text_of(settings.database_url),
        transaction_pooler=pooler,
        write_epochs=settings.database_write_epochs,
    )
