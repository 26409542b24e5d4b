"""What a database contains: its server, its schema, and the rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncConnection

from server.store.backups.errors import BackupError

_ABOUT = sa.text(
    "select current_schema() as schema, current_database() as database,"
    " current_setting('server_version_num')::int / 10000 as server_major"
)
_TABLES = sa.text(
    "select relname from pg_class where relnamespace = cast(:schema as regnamespace)"
    " and relkind in ('r', 'p') order by relname"
)
_ENDLESS = sa.text(
    "select set_config(name, '0', true) from pg_settings where name in"
    " ('transaction_timeout', 'idle_in_transaction_session_timeout',"
    " 'statement_timeout')"
)


@dataclass(frozen=True, slots=True)
class About:
    """Where tables are created on this connection, and the server's version."""

    schema: str
    database: str
    server_major: int


async def describe(connection: AsyncConnection) -> About:
    """Return what the connection leads to. Raises BackupError without a schema."""
    row = (await connection.execute(_ABOUT)).one()
    if row.schema is None:
        raise BackupError("no schema of the search_path exists: CREATE SCHEMA public")
    return About(**row._mapping)


async def disable_timeouts(connection: AsyncConnection) -> None:
    """Let the transaction of this connection last as long as it takes."""
    await connection.execute(_ENDLESS)


async def revision_of(connection: AsyncConnection) -> str:
    """Return the revision of the schema, "" if it has none."""
    return await connection.run_sync(
        lambda c: MigrationContext.configure(c).get_current_revision() or ""
    )


async def count_rows(connection: AsyncConnection, schema: str) -> Mapping[str, int]:
    """Return the number of rows of each table of a schema."""
    quoted = quote(connection, schema)
    names = await connection.execute(_TABLES, {"schema": quoted})
    return {
        name: await _count(connection, f"{quoted}.{quote(connection, name)}")
        for name in names.scalars().all()
    }


async def _count(connection: AsyncConnection, table: str) -> int:
    query = sa.text(f"select count(*) from {table}")  # noqa: S608 - quoted
    return int((await connection.execute(query)).scalar_one())


def quote(connection: AsyncConnection, name: str) -> str:
    """Return an identifier as SQL has it."""
    return connection.dialect.identifier_preparer.quote(name)
