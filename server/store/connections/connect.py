"""Connections to Postgres and Redis: bounded, timed, and one error when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import sqlalchemy as sa
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from server.domain.errors import StoreUnavailable
from server.store.connections.answers import answer_time
from server.store.connections.circuit_breaker import CircuitBreaker
from server.store.connections.database_url import parse_database_url
from server.store.connections.faults import is_read_only, is_unreachable
from server.store.connections.guarded_redis import GuardedRedis
from server.store.pool import driver
from server.store.pool.arguments import ConnectArguments
from server.store.pool.direct import DirectConnections, translated
from server.store.pool.reading import LOSS_DELAY_SECONDS, ReadingConnection
from server.store.pool.silence_monitor import SilenceMonitor
from server.store.pool.slots import PoolStatistics, Slots

DEFAULT_POOL_SIZE = 10
DEFAULT_POOL_TIMEOUT = timedelta(seconds=0.5)
DEFAULT_STATEMENT_TIMEOUT = timedelta(seconds=10)
PING_TIMEOUT_SECONDS = 0.8
ANSWER_MAX_AGE_SECONDS = 1.0  # of one that shows that Postgres is available
REPLACE_INTERVAL_SECONDS = 1.0  # of connections to a read-only server
READ_ONLY_REPORT_SECONDS = 45.0  # longer than an alert waits for the next write to fail
REDIS_TIMEOUT_SECONDS = 0.1


class Database:
    """A pool of connections to Postgres.

    `transaction_pooler` is for a pooler such as pgbouncer in transaction mode, which
    gives each transaction another connection: no prepared statements, no LISTEN, no
    settings of a session.
    """

    def __init__(
        self,
        url: str,
        *,
        transaction_pooler: bool = False,
        pool_size: int = DEFAULT_POOL_SIZE,
        pool_timeout: timedelta = DEFAULT_POOL_TIMEOUT,
        statement_timeout: timedelta = DEFAULT_STATEMENT_TIMEOUT,
    ) -> None:
        arguments = ConnectArguments(
            parse_database_url(url), transaction_pooler, statement_timeout
        )
        self._arguments = arguments
        direct = DirectConnections(arguments)
        self.alone = direct.alone
        self.session = direct.session
        self.listen = direct.listen
        self._probe = direct.probe
        self._slots = Slots(pool_size, pool_timeout.total_seconds())
        self._breaker = CircuitBreaker("postgres", direct.probe)
        self._monitor = SilenceMonitor(direct.probe, self._breaker.record_failure)
        self._read_only_until = 0.0
        self._reported_until = 0.0  # by `is_degraded`: a server refuses writes
        self._is_refused = False
        self.engine: AsyncEngine = create_async_engine(
            "postgresql+asyncpg://",
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=pool_timeout.total_seconds(),
            hide_parameters=True,  # an error's text may reach a log
            connect_args={
                **arguments.limited(),
                "async_creator_fn": self._connect,
            },
        )
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        sync_engine = self.engine.sync_engine
        sa.event.listen(sync_engine, "checkout", self._check_open)
        sa.event.listen(sync_engine, "after_cursor_execute", self._record_answer)
        sa.event.listen(sync_engine, "handle_error", self._handle_error)

    @property
    def statistics(self) -> PoolStatistics:
        """The present state of the pool."""
        pool = self.engine.sync_engine.pool
        assert isinstance(pool, QueuePool)  # noqa: S101
        slots = self._slots
        idle = pool.checkedin()
        return PoolStatistics(slots.in_use, idle, slots.waiting, slots.timeouts)

    @property
    def is_degraded(self) -> bool:
        """Whether Postgres does not respond, refuses connections or refuses writes."""
        now = asyncio.get_running_loop().time()
        return self._breaker.is_open or self._is_refused or now < self._reported_until

    @property
    def role(self) -> str:
        """The user of the URL, "" if it has none."""
        return self._arguments.url.role

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection that commits every statement.

        Raises StoreUnavailable.
        """
        async with (
            self._admitted(),
            self._opened(ReadingConnection, self._autocommit) as connection,
        ):
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a transaction, rolled back if the block raises.

        Raises StoreUnavailable.
        """
        async with (
            self._admitted(),
            self._opened(AsyncConnection, self.engine) as connection,
            connection.begin(),
        ):
            try:
                if self._arguments.transaction_pooler:
                    await connection.execute(self._arguments.set_local_timeouts())
                yield connection
            except asyncio.CancelledError:
                # not rolled back: the caller would wait for a silent Postgres
                await connection.invalidate()
                raise
        self._reported_until = 0.0  # a change was committed

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        """Wait for a slot of the pool, unless Postgres is known to be unavailable."""
        self._refuse_if_unavailable()
        with translated():
            async with self._slots.acquired():
                self._refuse_if_unavailable()
                async with self._monitor.interruptible():
                    yield

    def _refuse_if_unavailable(self) -> None:
        if cause := self._breaker.cause:
            raise StoreUnavailable from cause

    @asynccontextmanager
    async def _opened(
        self, kind: type[AsyncConnection], engine: AsyncEngine
    ) -> AsyncIterator[AsyncConnection]:
        """Yield a connection of the pool, after BEGIN if it needs one."""
        async with AsyncExitStack() as stack:
            connection = await self._open(kind, engine)
            stack.push_async_exit(connection)
            yield connection

    async def _open(
        self, kind: type[AsyncConnection], engine: AsyncEngine
    ) -> AsyncConnection:
        """Take a connection; if it is lost, take another one: nothing was executed."""
        try:
            return await _started(kind(engine))
        except Exception as error:
            if not is_unreachable(error):
                raise
        await asyncio.sleep(LOSS_DELAY_SECONDS)
        try:
            return await _started(kind(engine))
        except Exception as error:
            if is_unreachable(error):
                self._breaker.suspect()
            raise

    async def _connect(self, **arguments: Any) -> driver.PooledConnection:
        """Connect; note whether Postgres refuses, such as a wrong password."""
        try:
            connection = await driver.connect(**arguments)
        except Exception as error:
            self._is_refused = bool(getattr(error, "sqlstate", None))
            raise
        self._is_refused = False
        return connection

    def _check_open(self, dbapi_connection: Any, record: Any, _proxy: object) -> None:
        """Replace a connection that was closed, or that leads to a read-only server."""
        connection = dbapi_connection.driver_connection
        now = asyncio.get_running_loop().time()
        is_old = now - record.info.setdefault("connected_at", now) > (
            REPLACE_INTERVAL_SECONDS
        )
        is_fallback = isinstance(connection, driver.FallbackConnection)
        if connection.is_closed() or (is_fallback and is_old):
            raise sa.exc.DisconnectionError

    def _record_answer(self, *_: object) -> None:
        self._monitor.record_answer()

    def _handle_error(self, context: sa.ExceptionContext) -> None:
        """Treat a read-only server as a lost connection: another one may be primary.

        All connections of the pool are replaced then, at most once per interval.
        """
        error = context.original_exception
        context.invalidate_pool_on_disconnect = False
        if getattr(error, "sqlstate", None):
            self._monitor.record_answer()
        if isinstance(error.__cause__, asyncpg.InternalClientError):
            # Postgres has ended the session, the socket is about to be closed
            context.is_disconnect = True
        now = asyncio.get_running_loop().time()
        if is_read_only(error):
            if now >= self._read_only_until:
                context.is_disconnect = True
                context.invalidate_pool_on_disconnect = True
            self._read_only_until = now + REPLACE_INTERVAL_SECONDS
            self._reported_until = now + READ_ONLY_REPORT_SECONDS

    async def ping(self) -> None:
        """Check that Postgres answers, or has done so just now.

        Raises StoreUnavailable.
        """
        self._refuse_if_unavailable()
        if self._monitor.answered_within(ANSWER_MAX_AGE_SECONDS):
            return
        with translated():
            if self._slots.exhausted:
                await self._probe()
                return
            await answer_time(self._select(), PING_TIMEOUT_SECONDS)

    async def _select(self) -> None:
        async with self.reading() as connection:
            await connection.execute(sa.select(1))

    async def close(self) -> None:
        """Close every connection."""
        await self._monitor.close()
        await self._breaker.close()
        await self.engine.dispose()


async def _started(connection: AsyncConnection) -> AsyncConnection:
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


def redis_client(url: str) -> GuardedRedis:
    """Return a client that answers or fails within a tenth of a second.

    What Redis holds may be lost: no call waits for it, no command is retried.
    """
    client = GuardedRedis.from_url(
        url,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    assert isinstance(client, GuardedRedis)  # noqa: S101
    return client
