"""Reading accounts in Postgres: by id, and a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.accounts.users import Role, User, UserFilter, normalize_identifier
from server.domain.paging import MAX_OFFSET, PageRequest, Position, Rows, Sort
from server.store.connect import Database
from server.store.explain import Explain
from server.store.tables import users

USER_COLUMNS = (
    users.c.id,
    users.c.email,
    users.c.username,
    users.c.role,
    users.c.is_active,
    users.c.email_verified,
    users.c.created_at,
    users.c.updated_at,
    users.c.version,
)
NOT_DELETED = users.c.deleted_at.is_(None)
_SORTS: dict[str, sa.ColumnElement[object]] = {
    "id": users.c.id,
    "created_at": users.c.created_at,
    "username": users.c.username_folded,
}


class UserReads:
    """Gives accounts; the deleted are not among them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def by_id(self, user_id: int) -> User | None:
        """Give the account with this id."""
        return (await self.by_ids([user_id])).get(user_id)

    async def by_ids(self, user_ids: Sequence[int]) -> Mapping[int, User]:
        """Give the accounts that there are among these."""
        query = sa.select(*USER_COLUMNS).where(users.c.id.in_(user_ids), NOT_DELETED)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {row.id: user_of(row) for row in rows}

    async def after(self, user_id: int, size: int) -> Sequence[User]:
        """Give the next accounts above an id, in the order of ids."""
        query = sa.select(*USER_COLUMNS).where(users.c.id > user_id, NOT_DELETED)
        query = query.order_by(users.c.id).limit(size)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [user_of(row) for row in rows]

    async def page(
        self, wanted: UserFilter, sort: Sort, request: PageRequest
    ) -> Rows[User]:
        """Give one page, by at most two statements.

        The rows bring the count along; a second one asks for it where there are no
        rows, and the planner where there are too many to count.
        """
        matches = _matching(wanted)
        counted = _capped_count(matches)
        query = (
            sa.select(*USER_COLUMNS, counted.label("total"))
            .where(*matches)
            .order_by(*_order(sort))
            .offset(request.offset)
            .limit(request.size + 1)
        )
        if request.after:
            query = query.where(_beyond(sort, request.after))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
            total = rows[0].total if rows else None
            if total is None:
                total = (await connection.execute(sa.select(counted))).scalar_one()
            elif total > MAX_OFFSET:
                total = await _estimate(connection, matches)
        items = [user_of(row[:-1]) for row in rows[: request.size]]
        return Rows(items, len(rows) > request.size, total, total > MAX_OFFSET)


def user_of(row: Sequence[Any]) -> User:
    """Give the account in a row of PUBLIC."""
    user_id, email, username, role, *rest = row
    return User(user_id, email, username, Role(role), *rest)


def _matching(wanted: UserFilter) -> Sequence[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = [NOT_DELETED]
    if wanted.is_active is not None:
        conditions.append(users.c.is_active.is_(wanted.is_active))
    if wanted.username_prefix:
        prefix = normalize_identifier(wanted.username_prefix)
        conditions.append(users.c.username_folded.startswith(prefix, autoescape=True))
    if wanted.email:
        conditions.append(users.c.email == normalize_identifier(wanted.email))
    if wanted.role:
        conditions.append(users.c.role == wanted.role)
    return conditions


def _order(sort: Sort) -> list[sa.ColumnElement[object]]:
    columns = [_SORTS[sort.key], *([users.c.id] if sort.key != "id" else [])]
    return [column.desc() if sort.descending else column for column in columns]


def _beyond(sort: Sort, position: Position) -> sa.ColumnElement[bool]:
    values: dict[str, object] = {
        "id": position.id,
        "created_at": position.value,
        "username": position.value,
    }
    if sort.key == "created_at":
        values["created_at"] = datetime.fromisoformat(position.value)
    here = sa.tuple_(_SORTS[sort.key], users.c.id)
    there = sa.tuple_(
        sa.literal(values[sort.key], _SORTS[sort.key].type), sa.literal(position.id)
    )
    return here < there if sort.descending else here > there


def _capped_count(
    matches: Sequence[sa.ColumnElement[bool]],
) -> sa.ScalarSelect[int]:
    """Count to just above REACH, which costs the same however many there are."""
    some = sa.select(sa.literal(1)).select_from(users).where(*matches)
    some = some.correlate(None).limit(MAX_OFFSET + 1)
    return sa.select(sa.func.count()).select_from(some.subquery()).scalar_subquery()


async def _estimate(
    connection: AsyncConnection, matches: Sequence[sa.ColumnElement[bool]]
) -> int:
    """Ask the planner how many rows there are; always above REACH."""
    some = sa.select(sa.literal(1)).select_from(users).where(*matches)
    plan = (await connection.execute(Explain(some))).scalar_one()
    return max(MAX_OFFSET + 1, int(plan[0]["Plan"]["Plan Rows"]))
