"""First answers to repeatable requests, written beside the changes they answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.idempotency import (
    KEPT,
    IdempotencyRecord,
    RequestKey,
    ResponseExists,
    StoredResponse,
)
from server.store.connect import Database
from server.store.tables import request_answers as table

Result = TypeVar("Result")


def _is(key: RequestKey) -> sa.ColumnElement[bool]:
    return sa.and_(
        table.c.caller == key.caller,
        table.c.method == key.method,
        table.c.request_id == key.request_id,
    )


async def claim(
    connection: AsyncConnection, idempotency: IdempotencyRecord[Result]
) -> None:
    """Take the key for this transaction, before its change.

    A transaction with the same key waits here for this one's end, and then raises
    AnswerExists. An answer older than a day is written over.
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
    taken = await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[table.c.caller, table.c.method, table.c.request_id],
            set_={
                "fingerprint": statement.excluded.fingerprint,
                "answered_at": statement.excluded.answered_at,
            },
            where=table.c.answered_at < idempotency.answered_at - KEPT,
        ).returning(table.c.caller)
    )
    if taken.first() is None:
        raise ResponseExists


async def write(
    connection: AsyncConnection,
    idempotency: IdempotencyRecord[Result],
    result: Result,
    about: Sequence[int] = (),
) -> None:
    """Write the answer under the key claimed before, in the same transaction.

    `about` are the users whom it shows; erasing one of them erases it.
    """
    values = {"answer": idempotency.render(result), "about": list(about)}
    await connection.execute(
        sa.update(table).where(_is(idempotency.key)).values(values)
    )


class PostgresIdempotentResponses:
    """Reads first answers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key: RequestKey, since: datetime) -> StoredResponse | None:
        """Give the answer written under this key since then."""
        query = sa.select(table.c.fingerprint, table.c.answer).where(
            _is(key), table.c.answered_at >= since
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return StoredResponse(row.fingerprint, row.answer) if row else None
