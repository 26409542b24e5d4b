"""A change with its idempotent response, in one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.idempotency import IdempotencyRecord
from server.store import idempotent_responses
from server.store.connections.connect import Database

ConstraintErrors = Mapping[str, Callable[[], Exception]]


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
    try:
        async with database.transaction() as connection:
            if idempotency:
                await idempotent_responses.claim(connection, idempotency)
            yield connection
    except sa.exc.IntegrityError as error:
        cause = error.orig.__cause__ if error.orig else None
        name = getattr(cause, "constraint_name", "")
        if name not in errors:
            raise
        raise errors[name]() from error
