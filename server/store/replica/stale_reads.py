"""StaleReads: reads by the replica if it may serve them, else by the primary."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import structlog

from server.domain.errors import StoreUnavailable
from server.store.connections.faults import (
    DATABASE_ERRORS,
    driver_error,
    is_missing_privilege,
)
from server.store.pool.reader import Reader, Result, Work, always
from server.store.pool.slots import PoolTimeout
from server.store.pool.statement import Statement
from server.store.replica.replica import Replica
from server.store.replica.write_marks import WriteMarks

log = structlog.get_logger()


class StaleReads:
    """A Reader whose rows may be those of a moment ago; a caller sees its own writes.

    A read that fails at the replica is repeated at the primary at once, such as one
    that is in the way of what the replica has to replay ("conflict with recovery").
    """

    def __init__(self, primary: Reader, replica: Replica, marks: WriteMarks) -> None:
        self._primary = primary
        self._replica = replica
        self._marks = marks

    async def run(
        self, statement: Statement, **values: Any
    ) -> Sequence[asyncpg.Record]:
        """Execute one statement; return its rows. Raises StoreUnavailable."""
        return await self._served(lambda reader: reader.run(statement, **values))

    async def read(
        self, work: Work[Result], is_found: Callable[[Result], bool] = always
    ) -> Result:
        """Return the result of `work`. Raises StoreUnavailable. See Reader."""
        return await self._served(lambda reader: reader.read(work), is_found)

    async def _served(
        self,
        read: Callable[[Reader], Awaitable[Result]],
        is_found: Callable[[Result], bool] = always,
    ) -> Result:
        if await self._may_use_replica():
            try:
                result = await read(self._replica.database)
            except (StoreUnavailable, *DATABASE_ERRORS) as error:
                if _is_load(error):
                    raise
                _log_failure(error.__cause__ or error)
            else:
                if is_found(result):
                    return result
        return await read(self._primary)

    async def _may_use_replica(self) -> bool:
        if not self._replica.is_usable:
            return False
        # afterwards it may be no longer: a mark expires when the lag is exceeded
        return await self._marks.is_unmarked() and self._replica.is_usable


def _log_failure(cause: BaseException) -> None:
    """Log why the primary is read; it is until an operator grants a privilege."""
    write = log.warning if is_missing_privilege(cause) else log.info
    write("read by the primary instead of the replica", cause=repr(cause))


def _is_load(error: BaseException) -> bool:
    """Return whether the read found no connection, or took too long.

    The primary must not get the load that is too much for the replica.
    """
    cause = driver_error(error.__cause__ or error)
    return isinstance(cause, PoolTimeout | asyncpg.QueryCanceledError)
