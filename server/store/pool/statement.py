"""Statement: SQL that asyncpg prepares once per connection and then only executes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util import greenlet_spawn

# a name after one colon: not a cast
_VERB = re.compile(r"^\s*(\w+)")  # in capitals, as traces name a statement by it
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")


class Statement:
    """SQL with named parameters, written as `:name`.

    A cast is `cast(:name as type)`: SQLAlchemy does not find the name in `:name::type`.

    `Database.run` executes it without SQLAlchemy's objects: the values are those that
    asyncpg takes. `clause` is for a connection in a transaction.
    """

    def __init__(self, sql: str) -> None:
        sql = _VERB.sub(lambda verb: verb[1].upper(), sql)
        self.text = sql
        self.clause = sa.text(sql)
        self._names: list[str] = []
        self.sql = _PARAMETER.sub(self._position, sql)
        self.is_read = sql.startswith("SELECT")

    def _position(self, match: re.Match[str]) -> str:
        name = match[1]
        if name not in self._names:
            self._names.append(name)
        return f"${self._names.index(name) + 1}"

    def arguments(self, values: Mapping[str, object]) -> Sequence[Any]:
        """Return the values in the order of their positions."""
        return [values[name] for name in self._names]


async def fetch(
    connection: sa.PoolProxiedConnection,
    statement: Statement,
    values: Mapping[str, object],
    ends_connection: Callable[[BaseException], bool],
) -> Sequence[asyncpg.Record]:
    """Execute a statement outside a transaction, by asyncpg itself.

    `ends_connection` says whether the connection must not be used after an error.
    """
    driver_connection: Any = connection.driver_connection
    arguments = statement.arguments(values)
    try:
        rows = await driver_connection.fetch(statement.sql, *arguments)
    except BaseException as error:
        if ends_connection(error) or driver_connection.is_closed():
            await greenlet_spawn(connection.invalidate, error)
        raise
    return cast(Sequence[asyncpg.Record], rows)


async def fetch_within(
    connection: AsyncConnection, statement: Statement, values: Mapping[str, object]
) -> Sequence[asyncpg.Record]:
    """Execute a statement in the transaction of a connection; return its rows."""
    raw = await connection.get_raw_connection()
    driver_connection: Any = raw.driver_connection
    try:
        rows = await driver_connection.fetch(
            statement.sql, *statement.arguments(values)
        )
    except Exception:
        # SQLAlchemy does not know of the error, which may have ended the session
        await connection.invalidate()
        raise
    return cast(Sequence[asyncpg.Record], rows)
