"""Connections of the pool: to read, or in a transaction. Both survive a lost one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.store.connections.faults import is_unreachable
from server.store.pool.finishing import keep, leave

Connection = TypeVar("Connection")

# After the loss of one connection, the loop notices that others are closed, too.
LOSS_DELAY_SECONDS = 0.01


class PoolConnection(AsyncConnection):
    """A connection whose statement may finish after its caller was cancelled.

    Without that, each cancelled statement would cost its connection (`finishing`).
    """

    __slots__ = ("_statement",)

    _statement: asyncio.Task[sa.CursorResult[Any]] | None

    async def execute(
        self, statement: sa.Executable, parameters: Any = None, **options: Any
    ) -> sa.CursorResult[Any]:
        """Execute a statement."""
        executing = super().execute(statement, parameters, **options)
        self._statement = asyncio.create_task(executing)
        try:
            return await asyncio.shield(self._statement)
        except asyncio.CancelledError:
            leave(self._statement)
            raise

    @asynccontextmanager
    async def committed(self) -> AsyncIterator[None]:
        """Commit the transaction of the block, or roll it back if the block raises."""
        transaction = await self.begin()
        try:
            yield
        except asyncio.CancelledError:
            # not rolled back here: the caller would wait for a silent Postgres
            if not self._is_left:
                await self.invalidate()
            raise
        except BaseException:
            await transaction.rollback()
            raise
        await transaction.commit()

    @property
    def _is_left(self) -> bool:
        """Whether a statement goes on without its caller."""
        statement = getattr(self, "_statement", None)
        return statement is not None and not statement.done()

    async def __aexit__(self, *details: object) -> None:
        """Close, after the end of a statement that goes on without its caller."""
        if self._is_left:
            keep(asyncio.create_task(self._close_after_statement()))
        else:
            await super().__aexit__(*details)

    async def _close_after_statement(self) -> None:
        assert self._statement is not None  # noqa: S101
        await asyncio.wait((self._statement,))
        await self.close()


class ReadingConnection(PoolConnection):
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


async def started(connection: PoolConnection) -> PoolConnection:
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


async def taken(
    take: Callable[[], Awaitable[Connection]], suspect: Callable[[], None]
) -> Connection:
    """Return a connection; if it is lost, another one: nothing was executed.

    `suspect` is called if Postgres cannot be reached the second time.
    """
    try:
        return await take()
    except Exception as error:
        if not is_unreachable(error):
            raise
    await asyncio.sleep(LOSS_DELAY_SECONDS)
    try:
        return await take()
    except Exception as error:
        if is_unreachable(error):
            suspect()
        raise
