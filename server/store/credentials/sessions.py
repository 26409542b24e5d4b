"""Sessions in Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import sqlalchemy as sa

from server.domain.accounts.users import Role
from server.domain.credentials.sessions import Rotation, Session
from server.domain.credentials.stores import Account, Decide, Owner
from server.domain.idempotency import IdempotencyRecord
from server.domain.outbox.entries import EventType, NewEntry
from server.store import idempotent_responses
from server.store.accounts.user_reads import NOT_DELETED
from server.store.change_records import (
    audit_change,
    audit_rows,
    mark_audited,
    record,
)
from server.store.connections.connect import Database
from server.store.credentials.account_locks import is_unchanged, lock_for_session
from server.store.credentials.revocations import RevocationFeed, end_sessions
from server.store.credentials.session_statements import (
    END,
    LOCK,
    OPEN,
    READ,
    ROTATE,
    SESSION_FIELDS,
)
from server.store.outbox import invalidate_mailed_tokens
from server.store.tables import sessions, users

DEFAULT_MAX_SESSIONS = 50
ACTIVITY_INTERVAL = timedelta(hours=1)
_SESSION = [sessions.c[name] for name in SESSION_FIELDS]


class PostgresSessions:
    """Stores sessions; ending one also writes its revocation."""

    def __init__(
        self,
        database: Database,
        feed: RevocationFeed,
        max_sessions: int = DEFAULT_MAX_SESSIONS,
    ) -> None:
        """`max_sessions` are the open ones of a user."""
        self._database = database
        self._feed = feed
        self._max_sessions = max_sessions

    async def add(self, session: Session, version: int) -> bool:
        """Write a new session, and an e-mail if its device or address is new.

        Of too many sessions the oldest end. Returns False, and changes nothing, if the
        account has changed since this version.
        """
        values = _columns_of(session) | {
            "version": version,
            "max_others": self._max_sessions - 1,
            "audit": audit_rows(),
        }
        rows = await self._database.run(OPEN, **values)
        if not rows:
            return False
        mark_audited()
        self._announce_entries(rows)
        if ended := rows[0]["ended"]:
            await self._feed.ended(ended, session.created_at)
        return True

    async def rotate(
        self, session_id: UUID, decide: Decide
    ) -> tuple[Rotation, Owner] | None:
        """Call `decide` with a session, and write the session of its result.

        If another call has changed the session meanwhile, it is decided again, under a
        lock. Returns None if there is no such session. An exception of `decide` changes
        nothing.
        """
        rows = await self._database.run(READ, session_id=session_id)
        if not rows:
            return None
        decided = _decided(rows[0], decide)
        if not decided.is_change:
            return decided.result
        if rows := await self._database.run(ROTATE, **decided.values()):
            mark_audited()
            self._announce_entries(rows)
        else:
            decided = await self._rotate_locked(session_id, decide)
        await self._announce(decided)
        return decided.result

    async def _rotate_locked(self, session_id: UUID, decide: Decide) -> _Decided:
        """Wait for the calls that change the session, then decide and write."""
        async with self._database.transaction() as connection:
            values = {"session_id": session_id}
            row = (await connection.execute(LOCK.clause, values)).one()
            decided = _decided(row._mapping, decide)
            if decided.is_change:
                await connection.execute(ROTATE.clause, decided.values())
                mark_audited()
        return decided

    def _announce_entries(self, rows: Sequence[asyncpg.Record]) -> None:
        if rows[0]["writes_entries"]:
            self._database.announce()

    async def _announce(self, decided: _Decided) -> None:
        after = decided.rotation.session
        if after.ended_at:
            await self._feed.ended([after.id], after.ended_at)

    async def end(self, session_id: UUID, now: datetime, user_id: int = 0) -> int:
        """End a session, of this user if one is named; return its user, 0 for none.

        Every process is informed. Ending it again changes nothing.
        """
        values = {"id": session_id, "user_id": user_id, "now": now}
        rows = await self._database.run(END, **values, audit=audit_rows())
        if not rows:
            return 0
        owner_id, was_open = rows[0]
        if was_open:
            mark_audited()
            await self._feed.ended([session_id], now)
        return int(owner_id)

    async def end_all(
        self, user_id: int, now: datetime, keep: UUID | None = None
    ) -> None:
        """End every session of a user but the one to keep."""
        async with self._database.transaction() as connection:
            ids = await end_sessions(connection, user_id, now, keep)
            await audit_change(connection)
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
            return [_session(row) for row in rows.mappings()]

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
            await lock_for_session(connection, user_id, keep)
            if not await is_unchanged(connection, user_id, account.version):
                return False
            await record(connection, now, confirm, notice)
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
            await lock_for_session(connection, user_id, keep)
            version = (await connection.execute(change)).scalar()
            if version is None:
                return False
            event = NewEntry(
                EventType.USER_UPDATED, user_id, payload={"version": version}
            )
            mail = NewEntry(EventType.PASSWORD_CHANGED, user_id)
            await record(connection, now, event, mail)
            await invalidate_mailed_tokens(connection, user_id, now)
            ids = await end_sessions(connection, user_id, now, keep)
            if idempotency:
                await idempotent_responses.write(connection, idempotency, None)
        await self._feed.ended(ids, now)
        return True


@dataclass(frozen=True, slots=True)
class _Decided:
    """A session as it was read, and what was decided about it."""

    before: Session
    owner: Owner
    rotation: Rotation

    @property
    def result(self) -> tuple[Rotation, Owner]:
        return self.rotation, self.owner

    @property
    def is_change(self) -> bool:
        return self.rotation.session != self.before

    def values(self) -> Mapping[str, Any]:
        """Return the parameters of ROTATE."""
        before, after = self.before, self.rotation.session
        idle = after.last_used_at - before.last_used_at
        return _columns_of(after) | {
            "read_hash": before.token_hash,
            "read_nonce": before.nonce,
            "is_active_again": idle >= ACTIVITY_INTERVAL,
            # a session ends here because the call is refused, which has its own event
            "audit": "[]" if after.ended_at else audit_rows(),
        }


def _columns_of(session: Session) -> dict[str, Any]:
    """Return the values by column; `asdict` would copy each value deeply."""
    return {name: getattr(session, name) for name in SESSION_FIELDS}


def _decided(row: Mapping[str, Any] | asyncpg.Record, decide: Decide) -> _Decided:
    before = _session(row)
    owner = Owner(Role(row["role"]), row["is_active"])
    return _Decided(before, owner, decide(before, owner))


def _session(row: Mapping[str, Any] | asyncpg.Record) -> Session:
    values = {name: row[name] for name in SESSION_FIELDS}
    return Session(**values | {"amr": tuple(values["amr"])})
