"""Connections to Postgres: bounded, timed, and one error when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from server.domain.errors import StoreUnavailable
from server.store.connections.answers import answer_time
from server.store.connections.circuit_breaker import CircuitBreaker
from server.store.connections.database_url import parse_database_url
from server.store.connections.faults import is_lost, is_read_only, is_unreachable
from server.store.pool import driver
from server.store.pool.arguments import ConnectArguments
from server.store.pool.direct import DirectConnections, translated
from server.store.pool.reading import (
    LOSS_DELAY_SECONDS,
    ReadingConnection,
    started,
)
from server.store.pool.settled_changes import TRANSACTION_IDS, WRITE_EPOCHS
from server.store.pool.silence_monitor import SilenceMonitor
from server.store.pool.slots import PoolStatistics, Slots
from server.store.pool.statement import Statement, fetch, fetch_within

DEFAULT_POOL_SIZE = 10
DEFAULT_POOL_TIMEOUT = timedelta(seconds=0.5)
DEFAULT_STATEMENT_TIMEOUT = timedelta(seconds=10)
PING_TIMEOUT_SECONDS = 0.8
ANSWER_MAX_AGE_SECONDS = 1.0  # of one that shows that Postgres is available
REPLACE_INTERVAL_SECONDS = 1.0  # of connections to a read-only server
READ_ONLY_REPORT_SECONDS = 45.0  # longer than an alert waits for the next write to fail
# in the `info` of a connection whose transaction writes outbox entries
WRITES_ENTRIES = "writes_entries"


class Database:
    """A pool of connections to Postgres.

    `transaction_pooler` is for a pooler such as pgbouncer in transaction mode, which
    gives each transaction another connection: no prepared statements, no settings of a
    session. `write_epochs` is for an engine without transaction ids.

    `announce` is called after a transaction that wrote outbox entries. Whoever writes
    them by `run` or `reading` calls it.
    """

    def __init__(
        self,
        url: str,
        *,
        transaction_pooler: bool = False,
        write_epochs: bool = False,
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
        self.announce: Callable[[], None] = lambda: None
        self.settled_changes = WRITE_EPOCHS if write_epochs else TRANSACTION_IDS
        self._probe = direct.probe
        self._slots = Slots(pool_size, pool_timeout.total_seconds())
        self._breaker = CircuitBreaker("postgres", direct.probe)
        self._monitor = SilenceMonitor(direct.probe, self._breaker.record_failure)
        self._read_only_until = 0.0
        self._replaced_at = 0.0  # connections made before are not used again
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

    async def run(
        self, statement: Statement, **values: Any
    ) -> Sequence[asyncpg.Record]:
        """Execute one statement, which is a transaction of its own; return its rows.

        One round trip. A read whose connection turned out to be lost is repeated; a
        write is not, because it may have been committed. Raises StoreUnavailable.
        """
        if self.settled_changes.must_begin(statement):
            async with self.transaction() as connection:
                return await fetch_within(connection, statement, values)
        async with self._admitted():
            try:
                rows = await self._run(statement, values)
            except Exception as error:
                if not (statement.is_read and is_lost(error)):
                    raise
                await asyncio.sleep(LOSS_DELAY_SECONDS)
                rows = await self._run(statement, values)
        if not statement.is_read:
            self._reported_until = 0.0  # a change was committed
        return rows

    async def _run(
        self, statement: Statement, values: Mapping[str, Any]
    ) -> Sequence[asyncpg.Record]:
        connection = await self._open(self.engine.raw_connection)
        try:
            rows = await fetch(connection, statement, values, self._ends_connection)
        finally:
            if connection.is_valid:
                connection.close()
        self._monitor.record_answer()
        return rows

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
                await self.settled_changes.begin_writing(connection)
                yield connection
            except asyncio.CancelledError:
                # not rolled back: the caller would wait for a silent Postgres
                await connection.invalidate()
                raise
            writes_entries = connection.info.pop(WRITES_ENTRIES, False)
        self._reported_until = 0.0  # a change was committed
        if writes_entries:
            self.announce()

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
            connection = await self._open(lambda: started(kind(engine)))
            stack.push_async_exit(connection)
            yield connection

    async def _open(self, take: Callable[[], Awaitable[Any]]) -> Any:
        """Take a connection; if it is lost, take another one: nothing was executed."""
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
        connected_at = record.info.setdefault("connected_at", now)
        is_old = now - connected_at > REPLACE_INTERVAL_SECONDS
        is_fallback = isinstance(connection, driver.FallbackConnection)
        is_replaced = connected_at < self._replaced_at
        if connection.is_closed() or is_replaced or (is_fallback and is_old):
            raise sa.exc.DisconnectionError

    def _record_answer(self, *_: object) -> None:
        self._monitor.record_answer()

    def _handle_error(self, context: sa.ExceptionContext) -> None:
        """Note an error of SQLAlchemy; decide whether its connection is closed."""
        error = context.original_exception
        context.invalidate_pool_on_disconnect = False
        if self._ends_connection(error):
            context.is_disconnect = True

    def _ends_connection(self, error: BaseException) -> bool:
        """Note an error of a statement; return whether to close the connection.

        A read-only server is treated like a lost connection: another one may be
        primary. All connections of the pool are replaced then, at most once per
        interval.
        """
        if getattr(error, "sqlstate", None):
            self._monitor.record_answer()
        if is_read_only(error):
            now = asyncio.get_running_loop().time()
            is_due = now >= self._read_only_until
            if is_due:
                self._replaced_at = now
            self._read_only_until = now + REPLACE_INTERVAL_SECONDS
            self._reported_until = now + READ_ONLY_REPORT_SECONDS
            return is_due
        # Postgres has ended the session, and the socket is about to be closed; or the
        # caller was cancelled, and the answer would be the next caller's
        causes = (error, error.__cause__)
        return not isinstance(error, Exception) or any(
            isinstance(cause, asyncpg.InternalClientError) for cause in causes
        )

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
