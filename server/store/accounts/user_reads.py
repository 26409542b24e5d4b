"""Reading accounts in Postgres: by id, in id order, and in pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import sqlalchemy as sa

from server.domain.accounts.users import Role, User, UserFilter, normalize_identifier
from server.domain.paging import MAX_OFFSET, PageRequest, Rows, Sort
from server.store.connections.connect import Database
from server.store.keyset import Estimates, Keyset, capped_count, total_of
from server.store.mapping import columns_of, entity_of
from server.store.tables import users

USER_COLUMNS = columns_of(User, users)
NOT_DELETED = users.c.deleted_at.is_(None)
_ROLES = {int(role): role for role in Role}
_SORT_COLUMNS: dict[str, sa.ColumnElement[Any]] = {
    "id": users.c.id,
    "created_at": users.c.created_at,
    "username": users.c.username_folded,
}


class UserReads:
    """Reads accounts. Deleted ones are not found."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._estimates = Estimates()

    async def by_id(self, user_id: int) -> User | None:
        """Return the account with this id, or None."""
        return (await self.by_ids([user_id])).get(user_id)

    async def by_ids(self, user_ids: Sequence[int]) -> Mapping[int, User]:
        """Return the accounts with these ids, by id; unknown ids are left out."""
        query = sa.select(*USER_COLUMNS).where(users.c.id.in_(user_ids), NOT_DELETED)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {row.id: user_of(row) for row in rows}

    async def after(self, user_id: int, size: int) -> Sequence[User]:
        """Return the next `size` accounts with a greater id, in id order."""
        query = sa.select(*USER_COLUMNS).where(users.c.id > user_id, NOT_DELETED)
        query = query.order_by(users.c.id).limit(size)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [user_of(row) for row in rows]

    async def page(
        self, user_filter: UserFilter, sort: Sort, request: PageRequest
    ) -> Rows[User]:
        """Return one page, read with at most two statements.

        The total comes with the rows. A second statement counts if there are no rows,
        or estimates if there are too many to count.
        """
        matching = (
            sa.select(sa.literal(1)).select_from(users).where(*_conditions(user_filter))
        )
        count = capped_count(matching)
        keyset = Keyset(_SORT_COLUMNS[sort.key], users.c.id, sort.descending)
        query = matching.with_only_columns(*USER_COLUMNS, count.label("total"))
        async with self._database.reading() as connection:
            rows = (await connection.execute(keyset.page(query, request))).all()
            total = await total_of(
                connection,
                rows[0].total if rows else None,
                count,
                matching,
                self._estimates,
                user_filter,
            )
        items = [user_of(row) for row in rows[: request.size]]
        return Rows(items, len(rows) > request.size, total, total > MAX_OFFSET)


def user_of(row: sa.Row[Any] | asyncpg.Record) -> User:
    """Return the account in a row with USER_COLUMNS."""
    if isinstance(row, asyncpg.Record):
        return entity_of(User, row, role=_ROLES[row["role"]])
    # 2 us in place of 5: a list has 100 rows
    return User(
        id=row.id,
        email=row.email,
        username=row.username,
        role=_ROLES[row.role],
        is_active=row.is_active,
        email_verified=row.email_verified,
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
    )


def _conditions(user_filter: UserFilter) -> Sequence[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = [NOT_DELETED]
    if user_filter.is_active is not None:
        conditions.append(users.c.is_active.is_(user_filter.is_active))
    if user_filter.username_prefix:
        prefix = normalize_identifier(user_filter.username_prefix)
        conditions.append(users.c.username_folded.startswith(prefix, autoescape=True))
    if user_filter.email:
        conditions.append(users.c.email == normalize_identifier(user_filter.email))
    if user_filter.role:
        conditions.append(users.c.role == user_filter.role)
    return conditions
