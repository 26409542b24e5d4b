"""ReadingConnection: repeats a read once whose connection turned out to be lost."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection


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
        await self.rollback()  # of what SQLAlchemy calls a transaction: sends nothing
        return await super().execute(statement, parameters, **options)


def _is_read(statement: sa.Executable) -> bool:
    if isinstance(statement, sa.TextClause):
        return statement.text.lstrip().lower().startswith("select")
    return isinstance(statement, sa.Select | sa.CompoundSelect)
