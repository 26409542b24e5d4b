"""Sessions in Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.accounts.users import Role
from server.domain.auth import Account, Decide, Owner
from server.domain.credentials.sessions import Rotation, Session
from server.domain.errors import TokenInvalid
from server.domain.idempotency import IdempotencyRecord
from server.domain.outbox.entries import EventType, NewEntry
from server.store import idempotent_responses
from server.store.accounts.user_reads import NOT_DELETED
from server.store.connect import Database
from server.store.credentials.revocations import RevocationFeed, end_sessions, revoke
from server.store.outbox import enqueue, take_back
from server.store.tables import sessions, users

SEEN_AGAIN = timedelta(hours=1)


class PostgresSessions:
    """Keeps sessions; whatever ends one also writes its revocation."""

    def __init__(self, database: Database, feed: RevocationFeed) -> None:
        self._database = database
        self._feed = feed

    async def add(self, session: Session, version: int) -> bool:
        """Write a new session, and a mail if it is from where none was before.

        Does nothing and gives False if the account has changed since this version.
        """
        here = sa.and_(
            sessions.c.device == session.device, sessions.c.address == session.address
        )
        before = sa.select(sa.func.bool_or(here)).where(
            sessions.c.user_id == session.user_id
        )
        async with self._database.transaction() as connection:
            if not await _stands(connection, session.user_id, version):
                return False
            # None at the first log-in, of which nobody needs to be told
            if (await connection.execute(before)).scalar() is False:
                await enqueue(connection, session.created_at, _new_device(session))
            await connection.execute(sa.insert(sessions).values(asdict(session)))
            seen = NewEntry(EventType.SESSION_OPENED, session.user_id)
            await enqueue(connection, session.created_at, seen)
        return True

    async def rotate(
        self, session_id: UUID, decide: Decide
    ) -> tuple[Rotation, Owner] | None:
        """Lock the session, let `decide` say what becomes of it, and write that.

        Gives None if there is no such session. What `decide` raises changes nothing.
        """
        there = sa.and_(users.c.is_active, users.c.deleted_at.is_(None))
        query = (
            sa.select(users.c.role, there, sessions)
            .join_from(sessions, users)
            .where(sessions.c.id == session_id)
            .with_for_update(of=sessions)
        )
        async with self._database.transaction() as connection:
            row = (await connection.execute(query)).first()
            if row is None:
                return None
            owner, before = Owner(Role(row[0]), row[1]), Session(*row[2:])
            rotation = decide(before, owner)
            if rotation.session != before:
                await _write(connection, rotation.session)
                await _see(connection, before, rotation.session)
        if rotation.session.ended_at:
            await self._feed.ended([session_id], rotation.session.ended_at)
        return rotation, owner

    async def end(self, session_id: UUID, now: datetime, user_id: int = 0) -> bool:
        """End the session, of this user if one is named; tell whether there is one.

        Ending it twice is no error. Every process gets to know.
        """
        found = [sessions.c.id == session_id]
        if user_id:
            found.append(sessions.c.user_id == user_id)
        moment = sa.func.coalesce(sessions.c.ended_at, now)
        statement = sa.update(sessions).where(*found).values(ended_at=moment)
        async with self._database.transaction() as connection:
            ended = await connection.execute(statement.returning(sessions.c.id))
            ids = ended.scalars().all()
            await revoke(connection, ids, now)
        await self._feed.ended(ids, now)
        return bool(ids)

    async def end_all(
        self, user_id: int, now: datetime, keep: UUID | None = None
    ) -> None:
        """End every session of a user but the one to keep."""
        async with self._database.transaction() as connection:
            ids = await end_sessions(connection, user_id, now, keep)
        await self._feed.ended(ids, now)

    async def open_of(self, user_id: int, now: datetime) -> Sequence[Session]:
        """Give a user's sessions that have not ended, the newest first."""
        query = (
            sa.select(sessions)
            .where(
                sessions.c.user_id == user_id,
                sessions.c.ended_at.is_(None),
                sessions.c.expires_at > now,
            )
            .order_by(sessions.c.created_at.desc(), sessions.c.id)
        )
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            return [Session(**row._mapping) for row in rows]

    async def ask_email_change(
        self, account: Account, new_email: str, keep: UUID, now: datetime
    ) -> bool:
        """Have both addresses written to, and end the other sessions.

        Does nothing and gives False if the account has changed since. Raises
        TokenInvalid.
        """
        user_id = account.user_id
        asked = NewEntry(EventType.EMAIL_CHANGE, user_id, address=new_email)
        told = NewEntry(EventType.EMAIL_CHANGE_ASKED, user_id)
        async with self._database.transaction() as connection:
            await _hold(connection, user_id, keep)
            if not await _stands(connection, user_id, account.version):
                return False
            await enqueue(connection, now, asked, told)
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
        """Put a new hash and end the other sessions, in one transaction.

        Does nothing and gives False if the account has changed since. Raises
        AnswerExists, TokenInvalid.
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
            await _hold(connection, user_id, keep)
            version = (await connection.execute(change)).scalar()
            if version is None:
                return False
            told = NewEntry(
                EventType.USER_UPDATED, user_id, payload={"version": version}
            )
            mail = NewEntry(EventType.PASSWORD_CHANGED, user_id)
            await enqueue(connection, now, told, mail)
            await take_back(connection, user_id, now)
            ids = await end_sessions(connection, user_id, now, keep)
            if idempotency:
                await idempotent_responses.write(connection, idempotency, None)
        await self._feed.ended(ids, now)
        return True


async def _stands(connection: AsyncConnection, user_id: int, version: int) -> bool:
    """Tell whether an account is still this version, until the transaction's end."""
    found = [users.c.id == user_id, users.c.version == version, NOT_DELETED]
    query = sa.select(users.c.id).where(*found).with_for_update(read=True)
    return (await connection.execute(query)).first() is not None


async def _hold(connection: AsyncConnection, user_id: int, session_id: UUID) -> None:
    """Lock an account for a change that one of its sessions asks for.

    The session may have ended since the password was looked at, by a reset, say:
    then whoever holds it must change nothing any more. Raises TokenInvalid.
    """
    account = sa.select(users.c.id).where(users.c.id == user_id)
    await connection.execute(account.with_for_update())
    # a statement of its own: it sees what was committed while the lock was waited for
    open_one = sa.select(sessions.c.id).where(
        sessions.c.id == session_id, sessions.c.ended_at.is_(None)
    )
    if (await connection.execute(open_one)).first() is None:
        raise TokenInvalid("the session has ended")


async def _see(connection: AsyncConnection, before: Session, after: Session) -> None:
    """Have it counted that a user was seen, at most once in SEEN_AGAIN."""
    if after.last_used_at - before.last_used_at >= SEEN_AGAIN:
        seen = NewEntry(EventType.SESSION_OPENED, after.user_id)
        await enqueue(connection, after.last_used_at, seen)


def _new_device(session: Session) -> NewEntry:
    told = {"device": session.device, "address": session.address}
    return NewEntry(EventType.NEW_DEVICE, session.user_id, payload=told)


async def _write(connection: AsyncConnection, session: Session) -> None:
    values: Mapping[str, Any] = asdict(session)
    changed = {name: value for name, value in values.items() if name != "id"}
    await connection.execute(
        sa.update(sessions).where(sessions.c.id == session.id).values(changed)
    )
    if session.ended_at:
        await revoke(connection, [session.id], session.ended_at)
