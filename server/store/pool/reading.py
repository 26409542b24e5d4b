"""Starting a connection: to read, or in a transaction. Both survive a lost one."""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

# After the loss of one connection, the loop notices that others are closed, too.
LOSS_DELAY_SECONDS = 0.01


class ReadingConnection(AsyncConnection):
    """A connection outside transactions.

    A lost connection is found by its use, not by a round trip before it. A read is then
    repeated on another connection; a write is not, because it may have been committed.
    """

    __slots__ = ()

    async def execute(
        self, statement: sa.Executable, parameters: Any = None, **options: Any
    ) -> sa.CursorResult[Any]:
        """Execute a statement."""
        try:
            return await super().execute(statement, parameters, **options)
        except sa.exc.DBAPIError as error:
            if not error.connection_invalidated or not _is_read(statement):
                raise
        await asyncio.sleep(LOSS_DELAY_SECONDS)
        await self.rollback()  # of what SQLAlchemy calls a transaction: sends nothing
        return await super().execute(statement, parameters, **options)


def _is_read(statement: sa.Executable) -> bool:
    if isinstance(statement, sa.TextClause):
        return statement.text.lstrip().lower().startswith("select")
    return isinstance(statement, sa.Select | sa.CompoundSelect)


async def started(connection: AsyncConnection) -> AsyncConnection:
    """Connect, and send BEGIN unless the connection commits every statement.

    SQLAlchemy sends BEGIN before the first statement of a transaction. Sent by itself
    it can be repeated when the connection turns out to be lost.
    """
    await connection.start()
    if isinstance(connection, ReadingConnection):
        return connection
    try:
        raw = await connection.get_raw_connection()
        adapter: Any = raw.dbapi_connection
        await adapter._start_transaction()
    except BaseException as error:
        await connection.invalidate()
        await connection.close()
        if isinstance(error, sa.exc.EmulatedDBAPIException) and not getattr(
            error, "sqlstate", None
        ):
            raise ConnectionResetError("lost before BEGIN") from error
        raise
    return connection
