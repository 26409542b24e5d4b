"""A change with the answer that a repeat is given, in one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.idempotency import IdempotencyRecord
from server.store import idempotent_responses
from server.store.connect import Database

Refusals = Mapping[str, Callable[[], Exception]]


@asynccontextmanager
async def writing(
    database: Database, idempotency: IdempotencyRecord[Any] | None, refusals: Refusals
) -> AsyncIterator[AsyncConnection]:
    """Give a transaction that has claimed the request's key.

    A constraint that is broken raises what `refusals` makes of its name. Raises
    AnswerExists, StoreUnavailable.
    """
    try:
        async with database.transaction() as connection:
            if idempotency:
                await idempotent_responses.claim(connection, idempotency)
            yield connection
    except sa.exc.IntegrityError as error:
        cause = error.orig.__cause__ if error.orig else None
        name = getattr(cause, "constraint_name", "")
        if name not in refusals:
            raise
        raise refusals[name]() from error
