"""A change with its idempotent response, in one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.idempotency import IdempotencyRecord
from server.store import idempotent_responses
from server.store.connections.connect import Database
from server.store.connections.faults import driver_error

Refusals = Mapping[str, Callable[[], Exception]]


@contextmanager
def refusing(refusals: Refusals) -> Iterator[None]:
    """Raise the error that `refusals` has for the violated constraint of the block."""
    try:
        yield
    except (sa.exc.IntegrityError, asyncpg.IntegrityConstraintViolationError) as error:
        name = getattr(driver_error(error), "constraint_name", "")
        if name not in refusals:
            raise
        raise refusals[name]() from error


@asynccontextmanager
async def writing(
    database: Database, idempotency: IdempotencyRecord[Any] | None, refusals: Refusals
) -> AsyncIterator[AsyncConnection]:
    """Open a transaction that has claimed the request's key, if there is one.

    `refusals` maps the name of a violated constraint to the error to raise. Raises
    ResponseExists, StoreUnavailable.
    """
    with refusing(refusals):
        async with database.transaction() as connection:
            if idempotency:
                await idempotent_responses.claim(connection, idempotency)
            yield connection
