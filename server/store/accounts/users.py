"""Creating, changing and deleting accounts in Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
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
from server.store.change_records import (
    announce_after_commit,
    audit_rows,
    audited,
    mark_audited,
    record,
)
from server.store.connections.connect import Database
from server.store.credentials.revocations import RevocationFeed, end_sessions
from server.store.outbox import invalidate_mailed_tokens
from server.store.pool.statement import Statement
from server.store.tables import users
from server.store.write_transaction import map_violations, write_transaction

RESERVED = {
    "uq_users_email": EmailTaken,
    "uq_users_username_folded": UsernameTaken,
}
_COLUMNS = ", ".join(User.__match_args__)
# An account, its event, its welcome and the audit event: one statement in place of four
_CREATE = Statement(
    f"""
    with created as (
        insert into users (
            email, username, username_folded, hashed_password, role, created_at,
            updated_at
        )
        values (
            :email, :username, :username_folded, :hashed_password, :role, :now, :now
        )
        returning {_COLUMNS}, id as user_id
    ), enqueued as (
        insert into outbox (kind, user_id, payload, created_at)
        select '{EventType.USER_CREATED}', id, jsonb_build_object('version', version),
            :now
        from created
        union all
        select '{EventType.WELCOME}', id, '{{}}', :now from created
    ), {audited("created")}
    select {_COLUMNS} from created
    """  # noqa: S608 - no values
)


class PostgresUsers(UserReads):
    """Stores accounts; unique constraints decide races, not a look-up before."""

    def __init__(self, database: Database, feed: RevocationFeed) -> None:
        super().__init__(database)
        self._feed = feed

    async def add(
        self, new: NewUser, idempotency: IdempotencyRecord[User] | None = None
    ) -> User:
        """Write an account, and the idempotent response in the same transaction.

        Raises EmailTaken, UsernameTaken, ResponseExists.
        """
        values = {
            "email": new.email,
            "username": new.username,
            "username_folded": normalize_identifier(new.username),
            "hashed_password": new.password_hash,
            "role": new.role,
            "now": new.created_at,
            "audit": audit_rows(),
        }
        if idempotency is None:
            with map_violations(RESERVED):
                (row,) = await self._database.run(_CREATE, **values)
            self._database.announce()
            mark_audited()
            return user_of(row)
        async with write_transaction(
            self._database, idempotency, RESERVED
        ) as connection:
            user = user_of((await connection.execute(_CREATE.clause, values)).one())
            announce_after_commit(connection)
            await idempotent_responses.write(
                connection, idempotency, user, about=[user.id]
            )
        mark_audited()
        return user

    async def edit(
        self,
        user_id: int,
        edit: UserEdit,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        """Change an account, and end its sessions if `edit.ends_sessions`.

        Raises UserNotFound, EtagMismatch, LastAdmin, EmailTaken, UsernameTaken,
        ResponseExists.
        """
        ended: Sequence[UUID] = ()
        async with write_transaction(
            self._database, idempotency, RESERVED
        ) as connection:
            before = await locked(connection, user_id, admins=edit.ends_sessions)
            if edit.etag and edit.etag != before.etag:
                raise EtagMismatch(before.etag)
            values = _changes(before, edit)
            if values and edit.ends_sessions:
                await refuse_last_admin(connection, before, values)
                ended = await end_sessions(connection, user_id, edit.now)
            user = await _apply(connection, before, edit.now, values)
            if idempotency:
                await idempotent_responses.write(
                    connection, idempotency, user, about=[user_id]
                )
        self._committed(user)
        await self._feed.ended(ended, edit.now)
        return user

    async def delete(self, user_id: int, now: datetime) -> None:
        """Soft-delete an account and end its sessions.

        Raises UserNotFound, LastAdmin.
        """
        async with write_transaction(self._database, None, RESERVED) as connection:
            before = await locked(connection, user_id, admins=True)
            await refuse_last_admin(connection, before, {"is_active": False})
            ended = await end_sessions(connection, user_id, now)
            await invalidate_mailed_tokens(connection, user_id, now)
            user = await changed(
                connection, EventType.USER_DELETED, user_id, now, {"deleted_at": now}
            )
        self._committed(user, is_deleted=True)
        await self._feed.ended(ended, now)

    async def undelete(
        self,
        user_id: int,
        deleted_after: datetime,
        now: datetime,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        """Restore an account that was deleted after `deleted_after`.

        Raises UserNotFound, ResponseExists.
        """
        async with write_transaction(
            self._database, idempotency, RESERVED
        ) as connection:
            restorable = [users.c.id == user_id, users.c.deleted_at > deleted_after]
            query = sa.select(users.c.id).where(*restorable).with_for_update()
            if (await connection.execute(query)).first() is None:
                raise UserNotFound(user_id)
            user = await changed(
                connection, EventType.USER_UNDELETED, user_id, now, {"deleted_at": None}
            )
            if idempotency:
                await idempotent_responses.write(
                    connection, idempotency, user, about=[user_id]
                )
        self._committed(user)
        return user

    def _committed(self, user: User, *, is_deleted: bool = False) -> None:
        """Take note of a change that this process has committed."""


async def _apply(
    connection: AsyncConnection,
    before: User,
    now: datetime,
    values: Mapping[str, object],
) -> User:
    """Change a locked account; the previous e-mail address is notified of a new one."""
    if not values:
        return before
    if "email" in values:
        await invalidate_mailed_tokens(connection, before.id, now)
        notice = NewEntry(EventType.EMAIL_CHANGED, before.id, address=before.email)
        await record(connection, now, notice)
    return await changed(connection, EventType.USER_UPDATED, before.id, now, values)


async def locked(connection: AsyncConnection, user_id: int, *, admins: bool) -> User:
    """Lock an account and return it. Raises UserNotFound.

    With `admins` every admin is locked too, in id order, so that two admins cannot
    revoke each other's rights at the same time.
    """
    condition = users.c.id == user_id
    if admins:
        condition = sa.or_(condition, users.c.role == Role.ADMIN)
    query = sa.select(*USER_COLUMNS).where(condition, NOT_DELETED).order_by(users.c.id)
    rows = await connection.execute(query.with_for_update())
    by_id = {row.id: user_of(row) for row in rows}
    if user_id not in by_id:
        raise UserNotFound(user_id)
    return by_id[user_id]


async def refuse_last_admin(
    connection: AsyncConnection, before: User, values: Mapping[str, object]
) -> None:
    """Raise LastAdmin if these values would leave no active admin."""
    stays_admin = values.get("role", Role.ADMIN) == Role.ADMIN
    if before.role is not Role.ADMIN or not before.is_active:
        return
    if stays_admin and values.get("is_active", True):
        return
    others = [users.c.role == Role.ADMIN, users.c.is_active, users.c.id != before.id]
    query = sa.select(users.c.id).where(*others, NOT_DELETED).limit(1)
    if (await connection.execute(query)).first() is None:
        raise LastAdmin


def _changes(before: User, edit: UserEdit) -> dict[str, object]:
    """Return the columns whose values differ, and those that follow from them."""
    values = edit.changes(before)
    if "username" in values:
        values["username_folded"] = normalize_identifier(str(values["username"]))
    if "email" in values:
        values["email_verified"] = False
    return values


async def changed(
    connection: AsyncConnection,
    kind: EventType,
    user_id: int,
    now: datetime,
    values: Mapping[str, object],
) -> User:
    """Change a locked account; write the event of the change and the audit event.

    One statement in place of three.
    """
    statement = _change(tuple(values))
    parameters = {"kind": kind, "user_id": user_id, "now": now, "audit": audit_rows()}
    result = await connection.execute(statement.clause, {**values, **parameters})
    announce_after_commit(connection)
    mark_audited()
    return user_of(result.one())


@cache
def _change(columns: tuple[str, ...]) -> Statement:
    """Return the statement that changes these columns of an account."""
    return Statement(
        f"""
        with changed as (
            update users set {", ".join(f"{name} = :{name}" for name in columns)},
                updated_at = :now, version = version + 1
            where id = :user_id
            returning {_COLUMNS}, id as user_id
        ), enqueued as (
            insert into outbox (kind, user_id, payload, created_at)
            select :kind, id, jsonb_build_object('version', version), :now from changed
        ), {audited("changed")}
        select {_COLUMNS} from changed
        """  # noqa: S608 - no values
    )
