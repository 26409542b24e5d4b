"""First responses to idempotent requests, written beside their changes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.idempotency import (
    RESPONSE_RETENTION,
    IdempotencyRecord,
    RequestKey,
    ResponseExists,
    StoredResponse,
)
from server.store.connections.connect import Database
from server.store.tables import request_answers as table

Result = TypeVar("Result")


def _matches(key: RequestKey) -> sa.ColumnElement[bool]:
    return sa.and_(
        table.c.caller == key.caller,
        table.c.method == key.method,
        table.c.request_id == key.request_id,
    )


async def claim(
    connection: AsyncConnection, idempotency: IdempotencyRecord[Result]
) -> None:
    """Claim the request's key for this transaction, before its change.

    Another transaction with the same key waits here until this one ends, and then
    raises ResponseExists. A response older than a day is overwritten.
    """
    row = {
        "caller": idempotency.key.caller,
        "method": idempotency.key.method,
        "request_id": idempotency.key.request_id,
        "fingerprint": idempotency.fingerprint,
        "answer": b"",
        "answered_at": idempotency.answered_at,
    }
    statement = insert(table).values(row)
    claimed = await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[table.c.caller, table.c.method, table.c.request_id],
            set_={
                "fingerprint": statement.excluded.fingerprint,
                "answered_at": statement.excluded.answered_at,
            },
            where=table.c.answered_at < idempotency.answered_at - RESPONSE_RETENTION,
        ).returning(table.c.caller)
    )
    if claimed.first() is None:
        raise ResponseExists


async def write(
    connection: AsyncConnection,
    idempotency: IdempotencyRecord[Result],
    result: Result,
    about: Sequence[int] = (),
) -> None:
    """Write the response under the claimed key, in the same transaction.

    `about` are the ids of the users in it; erasing one of them erases it.
    """
    values = {"answer": idempotency.render(result), "about": list(about)}
    await connection.execute(
        sa.update(table).where(_matches(idempotency.key)).values(values)
    )


class PostgresIdempotentResponses:
    """Reads first responses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key: RequestKey, since: datetime) -> StoredResponse | None:
        """Return the response that was written under this key since then."""
        query = sa.select(table.c.fingerprint, table.c.answer).where(
            _matches(key), table.c.answered_at >= since
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return StoredResponse(row.fingerprint, row.answer) if row else None
