"""A column added to a table changes nothing for the code that does not know it."""

import asyncio
import sys

import sqlalchemy as sa

from server.store.connections.connect import Database
from server.store.tables import metadata

# In a process of its own: the columns must be there before stores are imported.
SCRIPT = """
import asyncio, sys
import sqlalchemy as sa
from server.store.tables import metadata
for table in metadata.sorted_tables:
    table.append_column(sa.Column("added_later", sa.Text, server_default="?"))
from tests.store.every_read import read_everything
asyncio.run(read_everything(*sys.argv[1:]))
"""


async def test_added_columns_shift_no_value(
    database: Database, database_url: str, redis_url: str
) -> None:
    """Rows are mapped by name: every read works with one more column everywhere."""
    async with database.transaction() as connection:
        for table in metadata.tables:
            column = "added_later text default '?'"
            await connection.execute(sa.text(f"alter table {table} add {column}"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, database_url, redis_url,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
