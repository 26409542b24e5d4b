"""Keyset pagination of any query: the order, the position in it, and the total."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.paging import MAX_OFFSET, PageRequest, Position
from server.store.connections.explain import Explain

ESTIMATE_TTL_SECONDS = 10.0
MAX_ESTIMATES = 1_000  # kept per list


@dataclass(frozen=True, slots=True)
class Keyset:
    """An order of rows: by a column, and by id where it is equal."""

    column: sa.ColumnElement[Any]
    id: sa.ColumnElement[Any]
    descending: bool

    @property
    def order(self) -> list[sa.ColumnElement[Any]]:
        """The columns to order by."""
        columns = [self.column] + ([] if self.column is self.id else [self.id])
        return [column.desc() if self.descending else column for column in columns]

    def after(self, position: Position) -> sa.ColumnElement[bool]:
        """Return the condition that a row follows a position."""
        row_key = sa.tuple_(self.column, self.id)
        position_key = sa.tuple_(
            sa.literal(position_value(self.column, position), self.column.type),
            sa.literal(position.id, sa.BigInteger),
        )
        return row_key < position_key if self.descending else row_key > position_key

    def page(self, query: sa.Select[Any], request: PageRequest) -> sa.Select[Any]:
        """Return the query of one page, with one more row if a page follows."""
        if request.after:
            query = query.where(self.after(request.after))
        return (
            query.order_by(*self.order).offset(request.offset).limit(request.size + 1)
        )


def position_value(column: sa.ColumnElement[Any], position: Position) -> object:
    """Return the sort value of a position in the type of its column."""
    if isinstance(column.type, sa.DateTime):
        return datetime.fromisoformat(position.value)
    return position.id if isinstance(column.type, sa.BigInteger) else position.value


def capped_count(rows: sa.Select[Any]) -> sa.ScalarSelect[int]:
    """Return an expression that counts to MAX_OFFSET + 1, at a bounded cost."""
    capped = rows.correlate(None).limit(MAX_OFFSET + 1)
    return sa.select(sa.func.count()).select_from(capped.subquery()).scalar_subquery()


class Estimates:
    """The planner's row counts, cached for ESTIMATE_TTL_SECONDS."""

    def __init__(self) -> None:
        self._cached: dict[object, tuple[int, float]] = {}

    async def get(
        self, connection: AsyncConnection, rows: sa.Select[Any], key: object
    ) -> int:
        """Return the estimated rows of a query, always above MAX_OFFSET.

        `key` identifies the query in the cache.
        """
        now = asyncio.get_running_loop().time()
        estimate, expires_at = self._cached.pop(key, (0, now))
        if expires_at <= now:
            plan = (await connection.execute(Explain(rows))).scalar_one()
            estimate = max(MAX_OFFSET + 1, int(plan[0]["Plan"]["Plan Rows"]))
            expires_at = now + ESTIMATE_TTL_SECONDS
        if len(self._cached) >= MAX_ESTIMATES:
            del self._cached[next(iter(self._cached))]
        self._cached[key] = estimate, expires_at
        return estimate


async def total_of(
    connection: AsyncConnection,
    total: int | None,
    count: sa.ColumnElement[int],
    rows: sa.Select[Any],
    estimates: Estimates,
    key: object,
) -> int:
    """Return how many rows match: `total` if known, else counted.

    Above MAX_OFFSET it is an estimate for `rows`, cached under `key`.
    """
    if total is None:
        total = (await connection.execute(sa.select(count))).scalar_one()
    if total <= MAX_OFFSET:
        return total
    return await estimates.get(connection, rows, key)
