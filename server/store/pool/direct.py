"""Connections to Postgres outside the pool."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from server.domain.errors import StoreUnavailable
from server.store.connections.answers import answer_time
from server.store.connections.faults import is_outage, is_unreachable
from server.store.pool.arguments import ConnectArguments

PROBE_TIMEOUT_SECONDS = 0.5


@contextmanager
def translated() -> Iterator[None]:
    """Raise StoreUnavailable for errors that mean that Postgres cannot serve now."""
    try:
        yield
    except Exception as error:
        if is_outage(error):
            raise StoreUnavailable from error
        raise


class DirectConnections:
    """Opens a connection for each use."""

    def __init__(self, arguments: ConnectArguments) -> None:
        self._arguments = arguments

    @asynccontextmanager
    async def alone(
        self, *, transaction: bool = False
    ) -> AsyncIterator[AsyncConnection]:
        """Yield a connection outside the pool, whose statements may take long.

        Raises StoreUnavailable.
        """
        engine = self._engine()
        if not transaction:
            engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        with translated():
            async with (
                engine.begin() if transaction else engine.connect() as connection
            ):
                yield connection

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection whose transactions the caller ends. See `alone`."""
        with translated():
            async with self._engine().connect() as connection:
                yield connection

    def _engine(self) -> AsyncEngine:
        return create_async_engine(
            "postgresql+asyncpg://",
            poolclass=NullPool,
            hide_parameters=True,  # an error's text may reach a log
            connect_args=self._arguments.unlimited(),
        )

    async def probe(self) -> None:
        """Check that Postgres answers. Raises the driver's errors if it does not.

        An answer such as "too many connections" is one.
        """
        try:
            await answer_time(self._connect_once(), PROBE_TIMEOUT_SECONDS)
        except Exception as error:
            if is_unreachable(error):
                raise

    async def _connect_once(self) -> None:
        connection = await asyncpg.connect(**self._arguments.direct())
        try:
            await connection.execute("select 1")
        finally:
            connection.terminate()
