"""Connections to Postgres and Redis: bounded, timed, and one error when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import sqlalchemy as sa
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, QueuePool

from server.domain.errors import StoreUnavailable
from server.store.connections.circuit_breaker import CircuitBreaker
from server.store.connections.database_url import parse_database_url
from server.store.connections.faults import is_outage, is_unreachable

POOL_SIZE = 10
CONNECT_TIMEOUT_SECONDS = 5.0
# A caller waits for a connection, then for a lock: both together end within 1 s.
POOL_TIMEOUT_SECONDS = 0.5
LOCK_TIMEOUT_SECONDS = 0.45
PING_TIMEOUT_SECONDS = 0.8  # of an idle connection, before it is used
STATEMENT_TIMEOUT_SECONDS = 10.0
REDIS_TIMEOUT_SECONDS = 0.25
KEEPALIVE_INTERVAL_SECONDS = 1.0  # of a connection that only listens


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """The state of the pool: connections, waiting callers, and timeouts in all."""

    in_use: int
    idle: int
    waiting: int
    timeouts: int


class Database:
    """A pool of connections to Postgres.

    `transaction_pooler` is for a pooler such as pgbouncer in transaction mode, which
    gives each transaction another connection: no prepared statements, no LISTEN, no
    settings of a session.
    """

    def __init__(self, url: str, *, transaction_pooler: bool = False) -> None:
        self._url = parse_database_url(url)
        self._transaction_pooler = transaction_pooler
        self._breaker = CircuitBreaker()
        self._waiting = 0
        self._timeouts = 0
        self.engine: AsyncEngine = create_async_engine(
            "postgresql+asyncpg://",
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_SECONDS,
            hide_parameters=True,  # an error's text may reach a log
            connect_args=self._connect_arguments(
                lock_timeout=LOCK_TIMEOUT_SECONDS,
                statement_timeout=STATEMENT_TIMEOUT_SECONDS,
            ),
        )
        sa.event.listen(self.engine.sync_engine, "checkout", self._check_alive)
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    def _connect_arguments(self, **timeouts: float) -> dict[str, Any]:
        """Return what asyncpg.connect gets; without timeouts none are enforced."""
        settings = {"application_name": self._url.application_name}
        arguments: dict[str, Any] = {
            "timeout": CONNECT_TIMEOUT_SECONDS,
            "command_timeout": timeouts.get("statement_timeout"),
            **self._url.connect_arguments,
            "server_settings": settings,
        }
        if not self._transaction_pooler:
            milliseconds = {n: f"{s * 1000:.0f}" for n, s in timeouts.items()}
            return arguments | {"server_settings": settings | milliseconds}
        return arguments | {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            # an unnamed statement, which asyncpg parses again with each execution
            "prepared_statement_name_func": lambda: "",
        }

    @property
    def statistics(self) -> PoolStatistics:
        """The present state of the pool."""
        pool = self.engine.sync_engine.pool
        assert isinstance(pool, QueuePool)  # noqa: S101
        return PoolStatistics(
            pool.checkedout(), pool.checkedin(), self._waiting, self._timeouts
        )

    @property
    def is_degraded(self) -> bool:
        """Whether calls are refused because Postgres does not answer."""
        return self._breaker.is_open

    @property
    def role(self) -> str:
        """The user of the URL, "" if it has none."""
        return self._url.role

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection that commits every statement.

        Raises StoreUnavailable.
        """
        async with (
            self._connection(self._autocommit) as connection,
            self._discarded_in_outage(connection),
        ):
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a transaction, rolled back if the block raises.

        Raises StoreUnavailable.
        """
        async with (
            self._connection(self.engine) as connection,
            connection.begin(),
            self._discarded_in_outage(connection),
        ):
            if self._transaction_pooler:
                await connection.execute(_SET_LOCAL_TIMEOUTS)
            yield connection

    @asynccontextmanager
    async def _connection(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """Take a connection from the pool, and note whether Postgres answers."""
        probing = self._breaker.admit()
        with _translated():
            async with AsyncExitStack() as stack:
                self._waiting += 1
                try:
                    # A probe must not wait as long as a first connection may.
                    async with asyncio.timeout(
                        PING_TIMEOUT_SECONDS if probing else None
                    ):
                        opened = await stack.enter_async_context(engine.connect())
                except Exception as error:
                    self._timeouts += isinstance(error, sa.exc.TimeoutError)
                    if is_unreachable(error):
                        self._breaker.record_failure()
                    raise
                finally:
                    self._waiting -= 1
                self._breaker.record_success()
                yield opened

    @asynccontextmanager
    async def _discarded_in_outage(
        self, connection: AsyncConnection
    ) -> AsyncIterator[None]:
        """Close the connection if the block fails in an outage: a rollback hangs."""
        try:
            yield
        except BaseException:
            if self._breaker.is_open:
                await connection.invalidate()
            raise

    def _check_alive(
        self, dbapi_connection: Any, _record: object, _proxy: object
    ) -> None:
        """Check a connection of the pool in one round trip; a lost one is replaced.

        Raises StoreUnavailable if Postgres is silent: a new connection would be, too.
        """
        try:
            dbapi_connection.run_async(
                lambda driver: driver.execute("select 1", timeout=PING_TIMEOUT_SECONDS)
            )
        except TimeoutError as error:
            self._breaker.record_failure()
            dbapi_connection.driver_connection.terminate()
            raise StoreUnavailable from error
        except asyncio.CancelledError:
            # SQLAlchemy would wait 2 s for a silent Postgres to confirm the end.
            dbapi_connection.driver_connection.terminate()
            raise
        except Exception as error:
            raise sa.exc.InvalidatePoolError from error

    @asynccontextmanager
    async def alone(
        self, *, transaction: bool = False
    ) -> AsyncIterator[AsyncConnection]:
        """Yield a connection outside the pool, whose statements may take long.

        Raises StoreUnavailable.
        """
        engine = create_async_engine(
            "postgresql+asyncpg://",
            poolclass=NullPool,
            hide_parameters=True,
            connect_args=self._connect_arguments(),
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
        on_notification: Callable[..., None],
        on_listening: Callable[[AsyncConnection], Awaitable[None]] | None = None,
    ) -> NoReturn:
        """LISTEN on a channel until the connection fails.

        `on_notification` is called as asyncpg calls listeners, `on_listening` once
        no notification can be missed any more. Behind a pooler nothing arrives, and
        callers depend on their polling. Raises StoreUnavailable and the like.
        """
        if self._transaction_pooler:
            await asyncio.Event().wait()
        async with self.alone() as connection:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            await driver.add_listener(channel, on_notification)
            if on_listening:
                await on_listening(connection)
            while True:
                await asyncio.sleep(KEEPALIVE_INTERVAL_SECONDS)
                async with asyncio.timeout(KEEPALIVE_INTERVAL_SECONDS):
                    await connection.execute(sa.select(1))

    async def ping(self) -> None:
        """Check that Postgres answers. Raises StoreUnavailable."""
        async with self.reading() as connection:
            await connection.execute(sa.select(1))

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


# transaction-local, because a pooler gives the session to others afterwards
_SET_LOCAL_TIMEOUTS = sa.text(
    f"select set_config('lock_timeout', '{LOCK_TIMEOUT_SECONDS * 1000:.0f}', true),"
    f" set_config('statement_timeout', '{STATEMENT_TIMEOUT_SECONDS * 1000:.0f}', true)"
)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_outage(error):
            raise StoreUnavailable from error
        raise


def redis_client(url: str) -> Redis:
    """Return a client that answers or fails within a quarter of a second.

    What Redis holds may be lost: no call waits for it, no command is retried.
    """
    client: Redis = Redis.from_url(
        url,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    return client
