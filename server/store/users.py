"""Accounts in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.auth import Account
from server.domain.errors import EmailTaken, UsernameTaken
from server.domain.paging import REACH, PageRequest, Position, Rows, Sort
from server.domain.requests import Once
from server.domain.users import NewUser, Role, User, UserFilter, fold
from server.store import answers
from server.store.connect import Database
from server.store.explain import Explain
from server.store.tables import users

_TAKEN = {
    "uq_users_email": EmailTaken,
    "uq_users_username_folded": UsernameTaken,
}
_PUBLIC = (
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
_ACCOUNT = (users.c.id, users.c.hashed_password, users.c.role, users.c.is_active)
_SORTS: dict[str, sa.ColumnElement[object]] = {
    "id": users.c.id,
    "created_at": users.c.created_at,
    "username": users.c.username_folded,
}


class PostgresUsers:
    """Keeps accounts; unique constraints decide races, not a look before."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, new: NewUser, once: Once[User] | None = None) -> User:
        """Write an account, and the answer that `once` makes of it.

        Raises EmailTaken, UsernameTaken, AnswerExists.
        """
        statement = (
            sa.insert(users)
            .values(
                email=new.email,
                username=new.username,
                username_folded=fold(new.username),
                hashed_password=new.password_hash,
                role=new.role,
                created_at=new.created_at,
                updated_at=new.created_at,
            )
            .returning(*_PUBLIC)
        )
        try:
            async with self._database.transaction() as connection:
                if once:
                    await answers.claim(connection, once)
                user = _user((await connection.execute(statement)).one())
                if once:
                    await answers.write(connection, once, user)
                return user
        except sa.exc.IntegrityError as error:
            raise _refusal(error) from error

    async def by_id(self, user_id: int) -> User | None:
        """Give the account with this id."""
        query = sa.select(*_PUBLIC).where(users.c.id == user_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return _user(row) if row else None

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
            sa.select(*_PUBLIC, counted.label("total"))
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
            elif total > REACH:
                total = await _estimate(connection, matches)
        items = [_user(row[:-1]) for row in rows[: request.size]]
        return Rows(items, len(rows) > request.size, total, total > REACH)

    async def account(self, identifier: str) -> Account | None:
        """Give the account with this folded username or e-mail address."""
        column = users.c.email if "@" in identifier else users.c.username_folded
        return await self._account(column == identifier)

    async def account_by_id(self, user_id: int) -> Account | None:
        """Give the account with this id."""
        return await self._account(users.c.id == user_id)

    async def _account(self, condition: sa.ColumnElement[bool]) -> Account | None:
        query = sa.select(*_ACCOUNT).where(condition)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        return Account(row.id, row.hashed_password, Role(row.role), row.is_active)

    async def replace_hash(self, user_id: int, old: str, new: str) -> None:
        """Put a better hash of the same password in place of the old one."""
        statement = (
            sa.update(users)
            .where(users.c.id == user_id, users.c.hashed_password == old)
            .values(hashed_password=new)
        )
        async with self._database.transaction() as connection:
            await connection.execute(statement)

    async def promote(self, email: str, role: Role, now: datetime) -> User | None:
        """Give the account with this folded address a role; None if there is none."""
        statement = (
            sa.update(users)
            .where(users.c.email == email)
            .values(role=role, updated_at=now, version=users.c.version + 1)
            .returning(*_PUBLIC)
        )
        async with self._database.transaction() as connection:
            row = (await connection.execute(statement)).first()
        return _user(row) if row else None


def _user(row: Sequence[Any]) -> User:
    user_id, email, username, role, *rest = row
    return User(user_id, email, username, Role(role), *rest)


def _refusal(error: sa.exc.IntegrityError) -> Exception:
    cause = error.orig.__cause__ if error.orig else None
    name = getattr(cause, "constraint_name", "")
    return _TAKEN[name]() if name in _TAKEN else error


def _matching(wanted: UserFilter) -> Sequence[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.is_active is not None:
        conditions.append(users.c.is_active.is_(wanted.is_active))
    if wanted.username_prefix:
        prefix = fold(wanted.username_prefix)
        conditions.append(users.c.username_folded.startswith(prefix, autoescape=True))
    if wanted.email:
        conditions.append(users.c.email == fold(wanted.email))
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
    some = some.correlate(None).limit(REACH + 1)
    return sa.select(sa.func.count()).select_from(some.subquery()).scalar_subquery()


async def _estimate(
    connection: AsyncConnection, matches: Sequence[sa.ColumnElement[bool]]
) -> int:
    """Ask the planner how many rows there are; always above REACH."""
    some = sa.select(sa.literal(1)).select_from(users).where(*matches)
    plan = (await connection.execute(Explain(some))).scalar_one()
    return max(REACH + 1, int(plan[0]["Plan"]["Plan Rows"]))
