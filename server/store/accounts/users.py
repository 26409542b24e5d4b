"""Changing accounts in Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.accounts.users import (
    NewUser,
    Role,
    User,
    UserEdit,
    normalize_identifier,
)
from server.domain.errors import (
    EmailTaken,
    EtagMismatch,
    LastAdmin,
    UsernameTaken,
    UserNotFound,
)
from server.domain.idempotency import IdempotencyRecord
from server.domain.outbox.entries import EventType, NewEntry
from server.store import idempotent_responses
from server.store.accounts.user_reads import (
    NOT_DELETED,
    USER_COLUMNS,
    UserReads,
    user_of,
)
from server.store.connect import Database
from server.store.credentials.revocations import RevocationFeed, end_sessions
from server.store.outbox import enqueue, invalidate_mailed_tokens
from server.store.tables import users
from server.store.writing import writing

RESERVED = {
    "uq_users_email": EmailTaken,
    "uq_users_username_folded": UsernameTaken,
}


class PostgresUsers(UserReads):
    """Keeps accounts; unique constraints decide races, not a look before."""

    def __init__(self, database: Database, feed: RevocationFeed) -> None:
        super().__init__(database)
        self._feed = feed

    async def add(
        self, new: NewUser, idempotency: IdempotencyRecord[User] | None = None
    ) -> User:
        """Write an account, and the answer that `once` makes of it.

        Raises EmailTaken, UsernameTaken, AnswerExists.
        """
        statement = (
            sa.insert(users)
            .values(
                email=new.email,
                username=new.username,
                username_folded=normalize_identifier(new.username),
                hashed_password=new.password_hash,
                role=new.role,
                created_at=new.created_at,
                updated_at=new.created_at,
            )
            .returning(*USER_COLUMNS)
        )
        async with writing(self._database, idempotency, RESERVED) as connection:
            user = user_of((await connection.execute(statement)).one())
            await enqueue(
                connection,
                new.created_at,
                _told(EventType.USER_CREATED, user),
                NewEntry(EventType.WELCOME, user.id),
            )
            if idempotency:
                await idempotent_responses.write(
                    connection, idempotency, user, about=[user.id]
                )
        return user

    async def edit(
        self,
        user_id: int,
        edit: UserEdit,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        """Change an account, and end its sessions if the edit says so.

        Raises UserNotFound, EtagMismatch, LastAdmin, EmailTaken, UsernameTaken,
        AnswerExists.
        """
        ended: Sequence[UUID] = ()
        async with writing(self._database, idempotency, RESERVED) as connection:
            before = await locked(connection, user_id, admins=edit.ends_sessions)
            if edit.etag and edit.etag != before.etag:
                raise EtagMismatch(before.etag)
            values = _changes(before, edit.values)
            user = before
            if values:
                if edit.ends_sessions:
                    await refuse_last_admin(connection, before, values)
                    ended = await end_sessions(connection, user_id, edit.now)
                if "email" in values:
                    await invalidate_mailed_tokens(connection, user_id, edit.now)
                    old = NewEntry(
                        EventType.EMAIL_CHANGED, user_id, address=before.email
                    )
                    await enqueue(connection, edit.now, old)
                user = await changed(
                    connection, EventType.USER_UPDATED, user_id, edit.now, values
                )
            if idempotency:
                await idempotent_responses.write(
                    connection, idempotency, user, about=[user_id]
                )
        await self._feed.ended(ended, edit.now)
        return user

    async def delete(self, user_id: int, now: datetime) -> None:
        """Delete an account softly and end its sessions.

        Raises UserNotFound, LastAdmin.
        """
        async with writing(self._database, None, RESERVED) as connection:
            before = await locked(connection, user_id, admins=True)
            await refuse_last_admin(connection, before, {"is_active": False})
            ended = await end_sessions(connection, user_id, now)
            await invalidate_mailed_tokens(connection, user_id, now)
            await changed(
                connection, EventType.USER_DELETED, user_id, now, {"deleted_at": now}
            )
        await self._feed.ended(ended, now)

    async def undelete(
        self,
        user_id: int,
        deleted_after: datetime,
        now: datetime,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        """Bring back an account deleted since. Raises UserNotFound, AnswerExists."""
        async with writing(self._database, idempotency, RESERVED) as connection:
            there = [users.c.id == user_id, users.c.deleted_at > deleted_after]
            query = sa.select(users.c.id).where(*there).with_for_update()
            if (await connection.execute(query)).first() is None:
                raise UserNotFound(user_id)
            user = await changed(
                connection, EventType.USER_UNDELETED, user_id, now, {"deleted_at": None}
            )
            if idempotency:
                await idempotent_responses.write(
                    connection, idempotency, user, about=[user_id]
                )
        return user


async def locked(connection: AsyncConnection, user_id: int, *, admins: bool) -> User:
    """Give an account that nobody else changes meanwhile. Raises UserNotFound.

    With `admins` every admin is locked too, in one order, so that two of them cannot
    end each other's rights at once.
    """
    wanted = users.c.id == user_id
    if admins:
        wanted = sa.or_(wanted, users.c.role == Role.ADMIN)
    query = sa.select(*USER_COLUMNS).where(wanted, NOT_DELETED).order_by(users.c.id)
    rows = await connection.execute(query.with_for_update())
    found = {row.id: user_of(row) for row in rows}
    if user_id not in found:
        raise UserNotFound(user_id)
    return found[user_id]


async def refuse_last_admin(
    connection: AsyncConnection, before: User, values: Mapping[str, object]
) -> None:
    """Raise LastAdmin if these values would leave no active admin."""
    stays = values.get("role", Role.ADMIN) == Role.ADMIN
    if before.role is not Role.ADMIN or not before.is_active:
        return
    if stays and values.get("is_active", True):
        return
    others = [users.c.role == Role.ADMIN, users.c.is_active, users.c.id != before.id]
    query = sa.select(users.c.id).where(*others, NOT_DELETED).limit(1)
    if (await connection.execute(query)).first() is None:
        raise LastAdmin


def _changes(before: User, values: Mapping[str, object]) -> dict[str, object]:
    """Give the columns that an edit really changes."""
    changed = {
        name: value for name, value in values.items() if getattr(before, name) != value
    }
    if "username" in changed:
        changed["username_folded"] = normalize_identifier(str(changed["username"]))
    if "email" in changed:
        changed["email_verified"] = False
    return changed


async def changed(
    connection: AsyncConnection,
    kind: EventType,
    user_id: int,
    now: datetime,
    values: Mapping[str, object],
) -> User:
    """Change an account that is locked, and write the event that tells of it."""
    statement = (
        sa.update(users)
        .where(users.c.id == user_id)
        .values(**values, updated_at=now, version=users.c.version + 1)
        .returning(*USER_COLUMNS)
    )
    user = user_of((await connection.execute(statement)).one())
    await enqueue(connection, now, _told(kind, user))
    return user


def _told(kind: EventType, user: User) -> NewEntry:
    return NewEntry(kind, user.id, payload={"version": user.version})
