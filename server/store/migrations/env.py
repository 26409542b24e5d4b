"""Alembic's entry point: migrate over the connection of server/store/migrate.py.

Without a connection, the statements are written to the output buffer of the config.
"""

from alembic import context

from server.store.tables import metadata

context.configure(
    connection=context.config.attributes.get("connection"),
    dialect_name="postgresql+asyncpg",  # its SQL has no %% for %
    target_metadata=metadata,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
