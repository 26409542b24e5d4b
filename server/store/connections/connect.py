"""Connections to Postgres: bounded, timed, and one error when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
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
from server.store.connections.faults import is_lost, is_read_only
from server.store.pool import driver
from server.store.pool.arguments import ConnectArguments
from server.store.pool.connection import (
    LOSS_DELAY_SECONDS,
    PoolConnection,
    ReadingConnection,
    started,
    taken,
)
from server.store.pool.direct import DirectConnections, translated
from server.store.pool.finishing import finishing, left
from server.store.pool.read_only import ReadOnlyServer
from server.store.pool.reader import Reader, Result, Work, always
from server.store.pool.settled_changes import TRANSACTION_IDS, WRITE_EPOCHS
from server.store.pool.silence_monitor import SilenceMonitor
from server.store.pool.slots import PoolStatistics, Slots
from server.store.pool.statement import Statement, fetch, fetch_within

DEFAULT_POOL_SIZE = 10
DEFAULT_POOL_TIMEOUT = timedelta(seconds=0.5)
DEFAULT_STATEMENT_TIMEOUT = timedelta(seconds=10)
PING_TIMEOUT_SECONDS = 0.8
ANSWER_MAX_AGE_SECONDS = 1.0  # of one that shows that Postgres is available
# in the `info` of a connection whose transaction writes outbox entries
WRITES_ENTRIES = "writes_entries"


class Database:
    """A pool of connections to Postgres.

    `transaction_pooler` is for a pooler such as pgbouncer in transaction mode, which
    gives each transaction another connection: no prepared statements, no settings of a
    session. `write_epochs` is for an engine without transaction ids. `name` is that of
    the server in the log.

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
        name: str = "postgres",
    ) -> None:
        arguments = ConnectArguments(
            parse_database_url(url), transaction_pooler, statement_timeout
        )
        self._arguments = arguments
        direct = DirectConnections(arguments)
        self.alone, self.session = direct.alone, direct.session
        self.announce: Callable[[], None] = lambda: None
        self.settled_changes = WRITE_EPOCHS if write_epochs else TRANSACTION_IDS
        self._probe = direct.probe
        self._slots = Slots(pool_size, pool_timeout.total_seconds())
        self._breaker = CircuitBreaker(name, direct.probe)
        self._monitor = SilenceMonitor(direct.probe, self._breaker.record_failure)
        self._read_only = ReadOnlyServer()
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
        pool, slots = self.engine.sync_engine.pool, self._slots
        assert isinstance(pool, QueuePool)  # noqa: S101
        idle = pool.checkedin()
        return PoolStatistics(slots.in_use, idle, slots.waiting, slots.timeouts)

    @property
    def is_degraded(self) -> bool:
        """Whether Postgres does not respond, refuses connections or refuses writes."""
        is_refused = self._is_refused or self._read_only.is_reported
        return self._breaker.is_open or is_refused

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

    def reads(self, *, stale: bool) -> Reader:
        """Return what to read by; rows of `stale` reads may be a little older."""
        return self

    async def read(
        self, work: Work[Result], is_found: Callable[[Result], bool] = always
    ) -> Result:
        """Return the result of `work`, which reads on one connection.

        `is_found` is for stale reads. Raises StoreUnavailable.
        """
        async with self.reading() as connection:
            return await work(connection)

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
                rows = await finishing(self._run(statement, values))
            except Exception as error:
                if not (statement.is_read and is_lost(error)):
                    raise
                await asyncio.sleep(LOSS_DELAY_SECONDS)
                rows = await finishing(self._run(statement, values))
        if not statement.is_read:
            self._read_only.record_commit()
        return rows

    async def _run(
        self, statement: Statement, values: Mapping[str, Any]
    ) -> Sequence[asyncpg.Record]:
        connection = await taken(self.engine.raw_connection, self._breaker.suspect)
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
            self._opened(PoolConnection, self.engine) as connection,
            connection.committed(),
        ):
            if self._arguments.transaction_pooler:
                await connection.execute(self._arguments.set_local_timeouts())
            await self.settled_changes.begin_writing(connection)
            yield connection
            writes_entries = connection.info.pop(WRITES_ENTRIES, False)
        self._read_only.record_commit()
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
        self, kind: type[PoolConnection], engine: AsyncEngine
    ) -> AsyncIterator[PoolConnection]:
        """Yield a connection of the pool, after BEGIN if it needs one."""
        async with AsyncExitStack() as stack:
            connection = await taken(
                lambda: started(kind(engine)), self._breaker.suspect
            )
            stack.push_async_exit(connection)
            yield connection

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
        is_fallback = isinstance(connection, driver.FallbackConnection)
        if connection.is_closed() or self._read_only.is_replaced(
            connected_at, is_fallback=is_fallback
        ):
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
        primary.
        """
        if getattr(error, "sqlstate", None):
            self._monitor.record_answer()
        if is_read_only(error):
            return self._read_only.record_refusal()
        # Postgres has ended the session, and the socket is about to be closed; or the
        # caller was cancelled, and the answer would be the next caller's
        causes = (error, error.__cause__)
        is_internal = [isinstance(e, asyncpg.InternalClientError) for e in causes]
        return any(is_internal) or not isinstance(error, Exception)

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
        """Refuse further calls, interrupt those that run, close every connection."""
        await self._monitor.close()
        await left()
        await self._breaker.close()
        await self.engine.dispose()
