"""Reader: what stores read by, so that a replica can take the place of the primary."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from server.store.pool.statement import Statement

Result = TypeVar("Result")
Work = Callable[[AsyncConnection], Awaitable[Result]]


def always(_: object) -> bool:
    """Accept every result."""
    return True


class Reader(Protocol):
    """Executes reads. Raises StoreUnavailable."""

    async def run(
        self, statement: Statement, **values: Any
    ) -> Sequence[asyncpg.Record]:
        """Execute one statement; return its rows."""

    async def read(
        self, work: Work[Result], is_found: Callable[[Result], bool] = always
    ) -> Result:
        """Return the result of `work`, which reads on one connection.

        `work` may be called twice: its second result is that of the primary, if the
        replica fails or its result is not `is_found`, for want of the newest rows.
        """
