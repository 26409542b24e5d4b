"""ReplicatedDatabase: the primary, and a replica that serves its stale reads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from server.store.connections.connect import Database
from server.store.pool.reader import Reader
from server.store.pool.statement import Statement
from server.store.replica.replica import Replica
from server.store.replica.stale_reads import StaleReads
from server.store.replica.write_marks import WriteMarks


class ReplicatedDatabase(Database):
    """A pool of connections to the primary, and another one to a replica.

    `options` are those of Database, for both pools. Writes mark their caller.
    """

    def __init__(
        self,
        url: str,
        replica_url: str,
        marks: WriteMarks,
        max_lag: timedelta,
        **options: Any,
    ) -> None:
        super().__init__(url, **options)
        self._marks = marks
        replica = Database(replica_url, **options, name="replica")
        self.replica = Replica(self, replica, max_lag)
        self._stale_reads = StaleReads(self, self.replica, marks)

    def reads(self, *, stale: bool) -> Reader:
        """Return what to read by: for `stale` reads the replica, if it is usable."""
        return self._stale_reads if stale else self

    async def run(
        self, statement: Statement, **values: Any
    ) -> Sequence[asyncpg.Record]:
        """Execute one statement at the primary. See Database.run."""
        if statement.is_read:
            return await super().run(statement, **values)
        async with self._marks.marking():
            return await super().run(statement, **values)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection to the primary in a transaction. See Database."""
        async with self._marks.marking(), super().transaction() as connection:
            yield connection

    async def close(self) -> None:
        """Close every connection."""
        await self.replica.database.close()
        await super().close()
