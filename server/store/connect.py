"""Connections to Postgres and Redis: bounded, timed, and one error when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn

import sqlalchemy as sa
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from server.domain.errors import StoreUnavailable

POOL = 10
SECONDS_TO_CONNECT = 5.0
SECONDS_FOR_A_CONNECTION = 1.0
SECONDS_FOR_A_STATEMENT = 10.0
SECONDS_FOR_REDIS = 0.25
SECONDS_BETWEEN_SIGNS_OF_LIFE = 1.0  # of a connection that only listens


def asyncpg_url(url: str) -> sa.URL:
    """Give the URL SQLAlchemy needs, from the one that libpq's users write."""
    parsed = sa.make_url(url)
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+asyncpg")
    query = dict(parsed.query)
    if mode := query.pop("sslmode", None):
        query["ssl"] = mode
    return parsed.set(query=query)


class Database:
    """A pool of connections to Postgres."""

    def __init__(self, url: str) -> None:
        self._arguments = {
            "timeout": SECONDS_TO_CONNECT,
            "command_timeout": SECONDS_FOR_A_STATEMENT,
            "server_settings": {"application_name": "academy"},
        }
        self.engine: AsyncEngine = create_async_engine(
            asyncpg_url(url),
            pool_size=POOL,
            max_overflow=0,
            pool_timeout=SECONDS_FOR_A_CONNECTION,
            pool_pre_ping=True,
            hide_parameters=True,  # an error's text may reach a log
            connect_args=self._arguments,
        )
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection whose every statement stands alone.

        Raises StoreUnavailable.
        """
        with _translated():
            async with self._autocommit.connect() as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection inside a transaction; what is raised rolls it back.

        Raises StoreUnavailable.
        """
        with _translated():
            async with self.engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def alone(
        self, *, transaction: bool = False
    ) -> AsyncIterator[AsyncConnection]:
        """Give a connection beside the pool, whose statements may take long.

        Raises StoreUnavailable.
        """
        engine = create_async_engine(
            self.engine.url,
            poolclass=NullPool,
            hide_parameters=True,
            connect_args=self._arguments | {"command_timeout": None},
            isolation_level="READ COMMITTED" if transaction else "AUTOCOMMIT",
        )
        with _translated():
            async with (
                engine.begin() if transaction else engine.connect() as connection
            ):
                yield connection

    async def listen(
        self,
        channel: str,
        heard: Callable[..., None],
        begun: Callable[[AsyncConnection], Awaitable[None]] | None = None,
    ) -> NoReturn:
        """Hear what Postgres tells on a channel until that fails.

        `heard` is called as asyncpg calls listeners, `begun` once nothing is missed any
        more. Raises StoreUnavailable and the like.
        """
        async with self.alone() as connection:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            await driver.add_listener(channel, heard)
            if begun:
                await begun(connection)
            while True:
                await asyncio.sleep(SECONDS_BETWEEN_SIGNS_OF_LIFE)
                async with asyncio.timeout(SECONDS_BETWEEN_SIGNS_OF_LIFE):
                    await connection.execute(sa.select(1))

    async def ping(self) -> None:
        """Ask Postgres for a sign of life. Raises StoreUnavailable."""
        async with self.reading() as connection:
            await connection.execute(sa.select(1))

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if _is_outage(error):
            raise StoreUnavailable from error
        raise


# connection, no such database, no log-in, read-only, given way to another transaction,
# out of resources, not in a state to serve, shutting down or stopped by an operator
_OUTAGES = ("08", "3D", "28", "25006", "40", "53", "55", "57")


def _is_outage(error: BaseException) -> bool:
    if isinstance(error, sa.exc.IntegrityError):
        return False
    if isinstance(error, sa.exc.DBAPIError):
        state = str(getattr(error.orig, "sqlstate", "") or "")
        return error.connection_invalidated or state.startswith(_OUTAGES)
    return isinstance(error, sa.exc.TimeoutError | OSError | TimeoutError)


def redis_client(url: str) -> Redis:
    """Give a client that answers or fails within a quarter of a second.

    What Redis holds may be lost: nobody waits for it, nothing is retried.
    """
    client: Redis = Redis.from_url(
        url,
        socket_timeout=SECONDS_FOR_REDIS,
        socket_connect_timeout=SECONDS_FOR_REDIS,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    return client
