"""Sessions in Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.accounts.users import Role
from server.domain.credentials.sessions import Rotation, Session
from server.domain.credentials.stores import Account, Decide, Owner
from server.domain.errors import TokenInvalid
from server.domain.idempotency import IdempotencyRecord
from server.domain.outbox.entries import EventType, NewEntry
from server.store import idempotent_responses
from server.store.accounts.user_reads import NOT_DELETED
from server.store.connections.connect import Database
from server.store.credentials.revocations import RevocationFeed, end_sessions, revoke
from server.store.outbox import enqueue, invalidate_mailed_tokens
from server.store.tables import sessions, users

ACTIVITY_INTERVAL = timedelta(hours=1)
_SESSION = [sessions.c[field.name] for field in fields(Session)]


class PostgresSessions:
    """Stores sessions; ending one also writes its revocation."""

    def __init__(self, database: Database, feed: RevocationFeed) -> None:
        self._database = database
        self._feed = feed

    async def add(self, session: Session, version: int) -> bool:
        """Write a new session, and an e-mail if its device or address is new.

        Returns False, and changes nothing, if the account has changed since this
        version.
        """
        same_origin = sa.and_(
            sessions.c.device == session.device, sessions.c.address == session.address
        )
        known = sa.select(sa.func.bool_or(same_origin)).where(
            sessions.c.user_id == session.user_id
        )
        async with self._database.transaction() as connection:
            if not await _is_unchanged(connection, session.user_id, version):
                return False
            # None at the first log-in, which needs no e-mail
            if (await connection.execute(known)).scalar() is False:
                await enqueue(connection, session.created_at, _new_device(session))
            await connection.execute(sa.insert(sessions).values(asdict(session)))
            event = NewEntry(EventType.SESSION_OPENED, session.user_id)
            await enqueue(connection, session.created_at, event)
        return True

    async def rotate(
        self, session_id: UUID, decide: Decide
    ) -> tuple[Rotation, Owner] | None:
        """Lock a session, call `decide`, and write the session of its result.

        Returns None if there is no such session. An exception of `decide` changes
        nothing.
        """
        is_active = sa.and_(users.c.is_active, NOT_DELETED).label("is_active")
        query = (
            sa.select(users.c.role, is_active, *_SESSION)
            .join_from(sessions, users)
            .where(sessions.c.id == session_id)
            .with_for_update(of=sessions)
        )
        async with self._database.transaction() as connection:
            row = (await connection.execute(query)).first()
            if row is None:
                return None
            owner = Owner(Role(row.role), row.is_active)
            before = _session(row)
            rotation = decide(before, owner)
            if rotation.session != before:
                await _write(connection, rotation.session)
                await _record_activity(connection, before, rotation.session)
        if rotation.session.ended_at:
            await self._feed.ended([session_id], rotation.session.ended_at)
        return rotation, owner

    async def end(self, session_id: UUID, now: datetime, user_id: int = 0) -> int:
        """End a session, of this user if one is named; return its user, 0 for none.

        Every process is informed. Ending it again changes nothing.
        """
        conditions = [sessions.c.id == session_id]
        if user_id:
            conditions.append(sessions.c.user_id == user_id)
        open_session = sa.update(sessions).where(
            *conditions, sessions.c.ended_at.is_(None)
        )
        statement = open_session.values(ended_at=now).returning(sessions.c.id)
        owner = sa.select(sessions.c.user_id).where(*conditions)
        async with self._database.transaction() as connection:
            ids = (await connection.execute(statement)).scalars().all()
            if ids:
                await revoke(connection, ids, now)
            session_owner = (await connection.execute(owner)).scalar()
        if ids:
            await self._feed.ended(ids, now)
        return session_owner or 0

    async def end_all(
        self, user_id: int, now: datetime, keep: UUID | None = None
    ) -> None:
        """End every session of a user but the one to keep."""
        async with self._database.transaction() as connection:
            ids = await end_sessions(connection, user_id, now, keep)
        await self._feed.ended(ids, now)

    async def open_of(self, user_id: int, now: datetime) -> Sequence[Session]:
        """Return a user's open sessions, the newest first."""
        query = (
            sa.select(*_SESSION)
            .where(
                sessions.c.user_id == user_id,
                sessions.c.ended_at.is_(None),
                sessions.c.expires_at > now,
            )
            .order_by(sessions.c.created_at.desc(), sessions.c.id)
        )
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            return [_session(row) for row in rows]

    async def request_email_change(
        self, account: Account, new_email: str, keep: UUID, now: datetime
    ) -> bool:
        """Enqueue an e-mail to the new and to the old address; end the other sessions.

        Returns False, and changes nothing, if the account has changed. Raises
        TokenInvalid if the session to keep has ended.
        """
        user_id = account.user_id
        confirm = NewEntry(EventType.EMAIL_CHANGE, user_id, address=new_email)
        notice = NewEntry(EventType.EMAIL_CHANGE_ASKED, user_id)
        async with self._database.transaction() as connection:
            await _lock(connection, user_id, keep)
            if not await _is_unchanged(connection, user_id, account.version):
                return False
            await enqueue(connection, now, confirm, notice)
            ids = await end_sessions(connection, user_id, now, keep)
        await self._feed.ended(ids, now)
        return True

    async def change_password(
        self,
        account: Account,
        hashed: str,
        keep: UUID,
        now: datetime,
        idempotency: IdempotencyRecord[None] | None = None,
    ) -> bool:
        """Write a new hash, end the other sessions and enqueue an e-mail to the owner.

        One transaction. Returns False, and changes nothing, if the account has
        changed. Raises ResponseExists; TokenInvalid if the session to keep has ended.
        """
        user_id = account.user_id
        change = (
            sa.update(users)
            .where(
                users.c.id == user_id, users.c.version == account.version, NOT_DELETED
            )
            .values(hashed_password=hashed, updated_at=now, version=users.c.version + 1)
            .returning(users.c.version)
        )
        async with self._database.transaction() as connection:
            if idempotency:
                await idempotent_responses.claim(connection, idempotency)
            await _lock(connection, user_id, keep)
            version = (await connection.execute(change)).scalar()
            if version is None:
                return False
            event = NewEntry(
                EventType.USER_UPDATED, user_id, payload={"version": version}
            )
            mail = NewEntry(EventType.PASSWORD_CHANGED, user_id)
            await enqueue(connection, now, event, mail)
            await invalidate_mailed_tokens(connection, user_id, now)
            ids = await end_sessions(connection, user_id, now, keep)
            if idempotency:
                await idempotent_responses.write(connection, idempotency, None)
        await self._feed.ended(ids, now)
        return True


def _session(row: sa.Row[Any]) -> Session:
    return Session(**{column.name: row._mapping[column] for column in _SESSION})


async def _is_unchanged(
    connection: AsyncConnection, user_id: int, version: int
) -> bool:
    """Lock an account, and return whether it still has this version."""
    unchanged = [users.c.id == user_id, users.c.version == version, NOT_DELETED]
    query = sa.select(users.c.id).where(*unchanged).with_for_update(read=True)
    return (await connection.execute(query)).first() is not None


async def _lock(connection: AsyncConnection, user_id: int, session_id: UUID) -> None:
    """Lock an account for a change that one of its sessions requests.

    Raises TokenInvalid if the session has ended since the password was verified, for
    example by a password reset.
    """
    account = sa.select(users.c.id).where(users.c.id == user_id)
    await connection.execute(account.with_for_update())
    # a separate statement sees what was committed while this one waited for the lock
    open_session = sa.select(sessions.c.id).where(
        sessions.c.id == session_id, sessions.c.ended_at.is_(None)
    )
    if (await connection.execute(open_session)).first() is None:
        raise TokenInvalid("the session has ended")


async def _record_activity(
    connection: AsyncConnection, before: Session, after: Session
) -> None:
    """Write an event of the user's activity, at most once in ACTIVITY_INTERVAL."""
    if after.last_used_at - before.last_used_at >= ACTIVITY_INTERVAL:
        event = NewEntry(EventType.SESSION_OPENED, after.user_id)
        await enqueue(connection, after.last_used_at, event)


def _new_device(session: Session) -> NewEntry:
    payload = {"device": session.device, "address": session.address}
    return NewEntry(EventType.NEW_DEVICE, session.user_id, payload=payload)


async def _write(connection: AsyncConnection, session: Session) -> None:
    values: Mapping[str, Any] = asdict(session)
    changes = {name: value for name, value in values.items() if name != "id"}
    await connection.execute(
        sa.update(sessions).where(sessions.c.id == session.id).values(changes)
    )
    if session.ended_at:
        await revoke(connection, [session.id], session.ended_at)
