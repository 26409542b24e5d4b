"""Accounts in Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.auth import Account
from server.domain.errors import (
    EmailTaken,
    EtagMismatch,
    LastAdmin,
    UsernameTaken,
    UserNotFound,
)
from server.domain.paging import REACH, PageRequest, Position, Rows, Sort
from server.domain.requests import Once
from server.domain.users import NewUser, Role, User, UserEdit, UserFilter, fold
from server.store import answers
from server.store.connect import Database
from server.store.explain import Explain
from server.store.revocations import RevocationFeed, end_sessions
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
_ACCOUNT = (
    users.c.id,
    users.c.username,
    users.c.hashed_password,
    users.c.role,
    users.c.is_active,
)
_THERE = users.c.deleted_at.is_(None)
_SORTS: dict[str, sa.ColumnElement[object]] = {
    "id": users.c.id,
    "created_at": users.c.created_at,
    "username": users.c.username_folded,
}


class PostgresUsers:
    """Keeps accounts; unique constraints decide races, not a look before."""

    def __init__(self, database: Database, feed: RevocationFeed) -> None:
        self._database = database
        self._feed = feed

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
        async with self._changing(once) as connection:
            user = _user((await connection.execute(statement)).one())
            if once:
                await answers.write(connection, once, user)
        return user

    async def by_id(self, user_id: int) -> User | None:
        """Give the account with this id."""
        return (await self.by_ids([user_id])).get(user_id)

    async def by_ids(self, user_ids: Sequence[int]) -> Mapping[int, User]:
        """Give the accounts that there are among these."""
        query = sa.select(*_PUBLIC).where(users.c.id.in_(user_ids), _THERE)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {row.id: _user(row) for row in rows}

    async def edit(
        self, user_id: int, edit: UserEdit, once: Once[User] | None = None
    ) -> User:
        """Change an account, and end its sessions if the edit says so.

        Raises UserNotFound, EtagMismatch, LastAdmin, EmailTaken, UsernameTaken,
        AnswerExists.
        """
        ended: Sequence[UUID] = ()
        async with self._changing(once) as connection:
            before = await _locked(connection, user_id, admins=edit.ends_sessions)
            if edit.etag and edit.etag != before.etag:
                raise EtagMismatch(before.etag)
            values = _changes(before, edit.values)
            user = before
            if values:
                if edit.ends_sessions:
                    await _refuse_last_admin(connection, before, values)
                    ended = await end_sessions(connection, user_id, edit.now)
                user = await _changed(connection, user_id, edit.now, values)
            if once:
                await answers.write(connection, once, user)
        await self._feed.ended(ended, edit.now)
        return user

    async def delete(self, user_id: int, now: datetime) -> None:
        """Delete an account softly and end its sessions.

        Raises UserNotFound, LastAdmin.
        """
        async with self._changing(None) as connection:
            before = await _locked(connection, user_id, admins=True)
            await _refuse_last_admin(connection, before, {"is_active": False})
            ended = await end_sessions(connection, user_id, now)
            await _changed(connection, user_id, now, {"deleted_at": now})
        await self._feed.ended(ended, now)

    async def undelete(
        self,
        user_id: int,
        deleted_after: datetime,
        now: datetime,
        once: Once[User] | None = None,
    ) -> User:
        """Bring back an account deleted since. Raises UserNotFound, AnswerExists."""
        async with self._changing(once) as connection:
            there = [users.c.id == user_id, users.c.deleted_at > deleted_after]
            query = sa.select(users.c.id).where(*there).with_for_update()
            if (await connection.execute(query)).first() is None:
                raise UserNotFound(user_id)
            user = await _changed(connection, user_id, now, {"deleted_at": None})
            if once:
                await answers.write(connection, once, user)
        return user

    @asynccontextmanager
    async def _changing(
        self, once: Once[User] | None
    ) -> AsyncIterator[AsyncConnection]:
        """Give a transaction that has claimed the request's key.

        Raises EmailTaken, UsernameTaken, AnswerExists, StoreUnavailable.
        """
        try:
            async with self._database.transaction() as connection:
                if once:
                    await answers.claim(connection, once)
                yield connection
        except sa.exc.IntegrityError as error:
            raise _refusal(error) from error

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
        query = sa.select(*_ACCOUNT).where(condition, _THERE)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        user_id, username, hashed, role, is_active = row
        return Account(user_id, username, hashed, Role(role), is_active)

    async def replace_hash(self, user_id: int, old: str, new: str) -> None:
        """Put a better hash of the same password in place of the old one."""
        statement = (
            sa.update(users)
            .where(users.c.id == user_id, users.c.hashed_password == old)
            .values(hashed_password=new)
        )
        async with self._database.transaction() as connection:
            await connection.execute(statement)


def _user(row: Sequence[Any]) -> User:
    user_id, email, username, role, *rest = row
    return User(user_id, email, username, Role(role), *rest)


async def _locked(connection: AsyncConnection, user_id: int, *, admins: bool) -> User:
    """Give an account that nobody else changes meanwhile. Raises UserNotFound.

    With `admins` every admin is locked too, in one order, so that two of them cannot
    end each other's rights at once.
    """
    wanted = users.c.id == user_id
    if admins:
        wanted = sa.or_(wanted, users.c.role == Role.ADMIN)
    query = sa.select(*_PUBLIC).where(wanted, _THERE).order_by(users.c.id)
    rows = await connection.execute(query.with_for_update())
    found = {row.id: _user(row) for row in rows}
    if user_id not in found:
        raise UserNotFound(user_id)
    return found[user_id]


async def _refuse_last_admin(
    connection: AsyncConnection, before: User, values: Mapping[str, object]
) -> None:
    stays = values.get("role", Role.ADMIN) == Role.ADMIN
    if before.role is not Role.ADMIN or not before.is_active:
        return
    if stays and values.get("is_active", True):
        return
    others = [users.c.role == Role.ADMIN, users.c.is_active, users.c.id != before.id]
    query = sa.select(users.c.id).where(*others, _THERE).limit(1)
    if (await connection.execute(query)).first() is None:
        raise LastAdmin


def _changes(before: User, values: Mapping[str, object]) -> dict[str, object]:
    """Give the columns that an edit really changes."""
    changed = {
        name: value for name, value in values.items() if getattr(before, name) != value
    }
    if "username" in changed:
        changed["username_folded"] = fold(str(changed["username"]))
    if "email" in changed:
        changed["email_verified"] = False
    return changed


async def _changed(
    connection: AsyncConnection,
    user_id: int,
    now: datetime,
    values: Mapping[str, object],
) -> User:
    statement = (
        sa.update(users)
        .where(users.c.id == user_id)
        .values(**values, updated_at=now, version=users.c.version + 1)
        .returning(*_PUBLIC)
    )
    return _user((await connection.execute(statement)).one())


def _refusal(error: sa.exc.IntegrityError) -> Exception:
    cause = error.orig.__cause__ if error.orig else None
    name = getattr(cause, "constraint_name", "")
    return _TAKEN[name]() if name in _TAKEN else error


def _matching(wanted: UserFilter) -> Sequence[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = [_THERE]
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
