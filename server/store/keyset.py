"""Pages of any table: their order, where a position lies in it, and the count."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.paging import MAX_OFFSET, PageRequest, Position
from server.store.explain import Explain

SECONDS_KEPT = 10.0
MOST_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Keyset:
    """An order of rows: by a column, and by the id where that is equal."""

    column: sa.ColumnElement[Any]
    id: sa.ColumnElement[Any]
    descending: bool

    @property
    def order(self) -> list[sa.ColumnElement[Any]]:
        """What to order by."""
        columns = [self.column] + ([] if self.column is self.id else [self.id])
        return [column.desc() if self.descending else column for column in columns]

    def beyond(self, position: Position) -> sa.ColumnElement[bool]:
        """Give the condition that a row stands behind a position."""
        there = sa.tuple_(
            sa.literal(_value(self.column, position), self.column.type),
            sa.literal(position.id, sa.BigInteger),
        )
        here = sa.tuple_(self.column, self.id)
        return here < there if self.descending else here > there

    def turned(self, query: sa.Select[Any], request: PageRequest) -> sa.Select[Any]:
        """Give a page of a query's rows, and one row more to see whether it is last."""
        if request.after:
            query = query.where(self.beyond(request.after))
        return (
            query.order_by(*self.order).offset(request.offset).limit(request.size + 1)
        )


def _value(column: sa.ColumnElement[Any], position: Position) -> object:
    if isinstance(column.type, sa.DateTime):
        return datetime.fromisoformat(position.value)
    return position.id if isinstance(column.type, sa.BigInteger) else position.value


def capped_count(rows: sa.Select[Any]) -> sa.ScalarSelect[int]:
    """Count to just above REACH, which costs the same however many there are."""
    some = rows.correlate(None).limit(MAX_OFFSET + 1)
    return sa.select(sa.func.count()).select_from(some.subquery()).scalar_subquery()


class Estimates:
    """The planner's counts, kept for some seconds: they are no more than estimates."""

    def __init__(self) -> None:
        self._kept: dict[object, tuple[int, float]] = {}

    async def of(
        self, connection: AsyncConnection, rows: sa.Select[Any], key: object
    ) -> int:
        """Give how many rows a query has, which `key` stands for; never up to REACH."""
        now = asyncio.get_running_loop().time()
        estimate, until = self._kept.pop(key, (0, now))
        if until <= now:
            plan = (await connection.execute(Explain(rows))).scalar_one()
            estimate = max(MAX_OFFSET + 1, int(plan[0]["Plan"]["Plan Rows"]))
            until = now + SECONDS_KEPT
        if len(self._kept) >= MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = estimate, until
        return estimate


async def counted(
    connection: AsyncConnection,
    known: int | None,
    count: sa.ColumnElement[int],
    rows: sa.Select[Any],
    estimates: Estimates,
    key: object,
) -> int:
    """Give how many rows there are: as known, else counted, else estimated."""
    if known is None:
        known = (await connection.execute(sa.select(count))).scalar_one()
    if known <= MAX_OFFSET:
        return known
    return await estimates.of(connection, rows, key)
