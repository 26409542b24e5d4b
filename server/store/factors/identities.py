"""Linked identities in Postgres; unique constraints decide races."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.accounts.users import Role, normalize_identifier
from server.domain.audit import pending_event
from server.domain.callers import Caller
from server.domain.credentials.stores import Account
from server.domain.errors import (
    IdentityNotFound,
    IdentityTaken,
    TokenInvalid,
    TooManyFactors,
)
from server.domain.identities.identities import MAX_IDENTITIES, Identity, NewAccount
from server.domain.identities.providers import ExternalIdentity
from server.domain.outbox.entries import EventType, NewEntry
from server.store.accounts.users import RESERVED
from server.store.change_records import (
    WRITE_ENTRIES,
    record,
    render_entries,
    render_events,
)
from server.store.connections.connect import Database
from server.store.credentials.account_locks import is_unchanged, lock_for_session
from server.store.factors.factors import lock_account
from server.store.factors.ways_in import bump_version, check_way_in
from server.store.pool.statement import Statement
from server.store.tables import identities as table
from server.store.tables import users
from server.store.write_transaction import write_transaction

MAX_EMAIL_LENGTH = 255  # of the column
NO_PASSWORD = ""  # no password matches it; ResetPassword can set one
_TAKEN = {"uq_identities_issuer_subject": IdentityTaken}
_USE = Statement(
    """
    update identities set last_used_at = :now, email = :email
    where issuer = :issuer and subject = :subject
    returning user_id
    """
)


class PostgresIdentities:
    """Stores linked identities."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def use(self, identity: ExternalIdentity, now: datetime) -> int:
        """Note a log-in with an identity; return its user, 0 if it is not linked."""
        rows = await self._database.run(
            _USE,
            now=now,
            email=_stored_email(identity),
            issuer=identity.issuer,
            subject=identity.subject,
        )
        return int(rows[0]["user_id"]) if rows else 0

    async def link(
        self,
        identity: ExternalIdentity,
        account: Account,
        caller: Caller,
        now: datetime,
    ) -> None:
        """Link an identity to the caller's account, and inform its owner.

        Raises IdentityTaken, TooManyFactors; TokenInvalid if the caller's session has
        ended or the account has changed since it was read.
        """
        user_id = account.user_id
        async with write_transaction(self._database, None, _TAKEN) as connection:
            await lock_for_session(connection, user_id, UUID(caller.session_id))
            if not await is_unchanged(connection, user_id, account.version):
                raise TokenInvalid("the account has changed")
            count = sa.select(sa.func.count()).where(table.c.user_id == user_id)
            if (await connection.execute(count)).scalar_one() >= MAX_IDENTITIES:
                raise TooManyFactors(MAX_IDENTITIES, "identities")
            await _add(connection, identity, user_id, now)
            await _record(connection, now, _linked(identity, user_id))

    async def create_account(
        self, identity: ExternalIdentity, new: NewAccount, now: datetime
    ) -> int:
        """Write an account with its identity; return its user.

        Raises EmailTaken, UsernameTaken, IdentityTaken.
        """
        values = {
            "email": new.email,
            "email_verified": True,
            "username": new.username,
            "username_folded": normalize_identifier(new.username),
            "hashed_password": NO_PASSWORD,
            "role": Role.STUDENT,
            "created_at": now,
            "updated_at": now,
        }
        errors = {**RESERVED, **_TAKEN}
        async with write_transaction(self._database, None, errors) as connection:
            added = sa.insert(users).values(values).returning(users.c.id)
            user_id: int = (await connection.execute(added)).scalar_one()
            await _add(connection, identity, user_id, now)
            await _record(
                connection,
                now,
                NewEntry(EventType.USER_CREATED, user_id, payload={"version": 1}),
                NewEntry(EventType.WELCOME, user_id),
                _linked(identity, user_id),
                events=("user.created", "identity.linked"),
            )
        return user_id

    async def all_of(self, user_id: int) -> Sequence[Identity]:
        """Return the identities of a user, in the order of their ids."""
        query = sa.select(table).where(table.c.user_id == user_id).order_by(table.c.id)
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            return [
                Identity(
                    id=row.id,
                    provider=row.provider,
                    issuer=row.issuer,
                    email=row.email,
                    created_at=row.created_at,
                    last_used_at=row.last_used_at,
                )
                for row in rows
            ]

    async def unlink(self, user_id: int, identity_id: int, now: datetime) -> None:
        """Delete an identity of a user, and inform them.

        Raises IdentityNotFound, LastWayIn.
        """
        owned = [table.c.id == identity_id, table.c.user_id == user_id]
        async with self._database.transaction() as connection:
            await lock_account(connection, user_id)
            statement = sa.delete(table).where(*owned).returning(table.c.provider)
            provider = (await connection.execute(statement)).scalar()
            if provider is None:
                raise IdentityNotFound(identity_id)
            await check_way_in(connection, user_id)
            event = await bump_version(connection, user_id, now)
            payload = {"provider": provider}
            mail = NewEntry(EventType.IDENTITY_UNLINKED, user_id, payload=payload)
            await record(connection, now, event, mail, user_id=user_id)


async def _add(
    connection: AsyncConnection,
    identity: ExternalIdentity,
    user_id: int,
    now: datetime,
) -> None:
    values = {
        "user_id": user_id,
        "issuer": identity.issuer,
        "subject": identity.subject,
        "email": _stored_email(identity),
        "provider": identity.provider_id,
        "created_at": now,
    }
    await connection.execute(sa.insert(table).values(values))


def _stored_email(identity: ExternalIdentity) -> str:
    return identity.email if len(identity.email) <= MAX_EMAIL_LENGTH else ""


def _linked(identity: ExternalIdentity, user_id: int) -> NewEntry:
    payload = {"provider": identity.provider_name}
    return NewEntry(EventType.IDENTITY_LINKED, user_id, payload=payload)


async def _record(
    connection: AsyncConnection,
    now: datetime,
    *entries: NewEntry,
    events: Sequence[str] = ("identity.linked",),
) -> None:
    """Write outbox entries, and audit events beside that of the call.

    The call's own event is that of the session, which is opened later.
    """
    user_id = entries[0].user_id or 0
    pending = pending_event.get()
    audit = [
        replace(pending.build(user_id), event=event, actor=f"user:{user_id}")
        for event in events
        if pending
    ]
    values = {
        "now": now,
        "entries": render_entries(entries),
        "audit": render_events(audit),
    }
    await connection.execute(WRITE_ENTRIES.clause, values)
