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

ConstraintErrors = Mapping[str, Callable[[], Exception]]


@contextmanager
def map_violations(errors: ConstraintErrors) -> Iterator[None]:
    """Raise the error that `errors` has for the violated constraint of the block."""
    try:
        yield
    except (sa.exc.IntegrityError, asyncpg.IntegrityConstraintViolationError) as error:
        name = getattr(driver_error(error), "constraint_name", "")
        if name not in errors:
            raise
        raise errors[name]() from error


@asynccontextmanager
async def write_transaction(
    database: Database,
    idempotency: IdempotencyRecord[Any] | None,
    errors: ConstraintErrors,
) -> AsyncIterator[AsyncConnection]:
    """Open a transaction that has claimed the request's key, if there is one.

    `errors` maps the name of a violated constraint to the error to raise. Raises
    ResponseExists, StoreUnavailable.
    """
    with map_violations(errors):
        async with database.transaction() as connection:
            if idempotency:
                await idempotent_responses.claim(connection, idempotency)
            yield connection
