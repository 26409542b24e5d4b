"""Mailed tokens in Postgres; each can be used once, by the first transaction.

The account is always locked before its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.accounts.users import User
from server.domain.credentials.mailed_tokens import MailedToken, Purpose, TokenOwner
from server.domain.errors import MailedTokenInvalid
from server.domain.outbox.entries import EntryState, EventType, NewEntry
from server.store.accounts.user_reads import NOT_DELETED
from server.store.accounts.users import RESERVED, changed
from server.store.change_records import record
from server.store.connections.connect import Database
from server.store.credentials.revocations import RevocationFeed, end_sessions
from server.store.outbox import invalidate_mailed_tokens
from server.store.tables import mailed_tokens as table
from server.store.tables import outbox, users
from server.store.write_transaction import write_transaction

ONE_DAY = timedelta(days=1)
Keep = Callable[[User], None]


class PostgresMailedTokens:
    """Stores tokens; `keep` writes changed users into the cache of this process."""

    def __init__(self, database: Database, feed: RevocationFeed, keep: Keep) -> None:
        self._database = database
        self._feed = feed
        self._keep = keep

    async def mint(self, token: MailedToken, max_per_day: int | None) -> bool:
        """Store a token; return False if its e-mail must not be sent.

        So it is if the account is deleted or disabled, has another address or has
        reached `max_per_day`, and if the outbox entry was withdrawn.
        """
        async with self._database.transaction() as connection:
            if not await _needed(connection, token):
                return False
            if max_per_day and await _minted(connection, token) >= max_per_day:
                return False
            statement = insert(table).values(asdict(token))
            stored = await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[table.c.digest],
                    set_={"expires_at": statement.excluded.expires_at},
                    where=table.c.used_at.is_(None),
                ).returning(table.c.digest)
            )
            return stored.first() is not None

    async def owner(
        self, digest: bytes, purpose: Purpose, now: datetime
    ) -> TokenOwner | None:
        """Return the owner of a valid token, without using it."""
        query = _select_valid(digest, [purpose], now)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return TokenOwner(row.user_id, row.username, row.email) if row else None

    async def reset_password(self, digest: bytes, hashed: str, now: datetime) -> None:
        """Use a token: write a new hash, and end every session of its owner.

        Raises MailedTokenInvalid.
        """
        async with self._database.transaction() as connection:
            token = await _use(connection, digest, [Purpose.RESET], now)
            if token is None:
                raise MailedTokenInvalid
            values = {"hashed_password": hashed, "email_verified": True}
            user = await changed(
                connection, EventType.USER_UPDATED, token.user_id, now, values
            )
            await invalidate_mailed_tokens(connection, user.id, now)
            mail = NewEntry(EventType.PASSWORD_CHANGED, user.id)
            await record(connection, now, mail, user_id=user.id)
            ended = await end_sessions(connection, user.id, now)
        self._keep(user)
        await self._feed.ended(ended, now)

    async def verify_email(self, digest: bytes, now: datetime) -> int:
        """Use a token: its address becomes the account's verified one.

        Returns the user's id, also for a used token while that is still so. Raises
        MailedTokenInvalid, EmailTaken.
        """
        purposes = [Purpose.VERIFY, Purpose.CHANGE]
        async with write_transaction(self._database, None, RESERVED) as connection:
            token = await _use(connection, digest, purposes, now)
            if token is None:
                return await _already_verified(connection, digest, purposes)
            user = await _verified(connection, token, now)
        self._keep(user)
        return user.id


async def _already_verified(
    connection: AsyncConnection, digest: bytes, purposes: list[Purpose]
) -> int:
    """Return the owner of a used token whose address is still the verified one.

    Links are opened twice, by mail scanners too. Raises MailedTokenInvalid.
    """
    query = (
        sa.select(table.c.user_id)
        .join_from(table, users)
        .where(
            table.c.digest == digest,
            table.c.purpose.in_(purposes),
            table.c.used_at < table.c.expires_at,  # used, not invalidated
            table.c.address == users.c.email,
            users.c.email_verified,
            users.c.is_active,
            NOT_DELETED,
        )
    )
    user_id: int | None = (await connection.execute(query)).scalar()
    if user_id is None:
        raise MailedTokenInvalid
    return user_id


async def _verified(
    connection: AsyncConnection, token: sa.Row[Any], now: datetime
) -> User:
    values = {"email": token.address, "email_verified": True}
    user = await changed(connection, EventType.USER_UPDATED, token.user_id, now, values)
    if token.address != token.email:
        await invalidate_mailed_tokens(connection, user.id, now)
        mail = NewEntry(EventType.EMAIL_CHANGED, user.id, address=token.email)
        await record(connection, now, mail, user_id=user.id)
    return user


def _select_valid(
    digest: bytes, purposes: list[Purpose], now: datetime
) -> sa.Select[tuple[Any, ...]]:
    """Select a valid token with the current data of its account.

    A token that proves an address is invalid once the account has another one.
    """
    same_address = sa.or_(
        table.c.purpose == Purpose.CHANGE, table.c.address == users.c.email
    )
    columns = (table.c.user_id, table.c.address, users.c.email, users.c.username)
    return (
        sa.select(*columns)
        .join_from(table, users)
        .where(
            table.c.digest == digest,
            table.c.purpose.in_(purposes),
            table.c.expires_at > now,
            table.c.used_at.is_(None),
            users.c.is_active,
            NOT_DELETED,
            same_address,
        )
    )


async def _use(
    connection: AsyncConnection, digest: bytes, purposes: list[Purpose], now: datetime
) -> sa.Row[Any] | None:
    """Use a token; None if it is not valid, or another transaction used it first."""
    query = _select_valid(digest, purposes, now).with_for_update(of=users)
    row: sa.Row[Any] | None = (await connection.execute(query)).first()
    if row is None:
        return None
    unused = [table.c.digest == digest, table.c.used_at.is_(None)]
    statement = sa.update(table).where(*unused).values(used_at=now)
    used = await connection.execute(statement.returning(table.c.user_id))
    return row if used.first() else None


async def _needed(connection: AsyncConnection, token: MailedToken) -> bool:
    """Lock the account, and return whether its token is still needed."""
    query = sa.select(users.c.email, users.c.is_active).where(
        users.c.id == token.user_id, NOT_DELETED
    )
    user = (await connection.execute(query.with_for_update(key_share=True))).first()
    entry = sa.select(outbox.c.id).where(
        outbox.c.id == token.outbox_id, outbox.c.state == EntryState.PENDING
    )
    if user is None or not user.is_active:
        return False
    if token.purpose is not Purpose.CHANGE and user.email != token.address:
        return False
    return (await connection.execute(entry)).first() is not None


async def _minted(connection: AsyncConnection, token: MailedToken) -> int:
    """Count the account's tokens of one day that belong to other entries."""
    query = sa.select(sa.func.count()).where(
        table.c.user_id == token.user_id,
        table.c.purpose == token.purpose,
        table.c.outbox_id != token.outbox_id,
        table.c.created_at > token.created_at - ONE_DAY,
    )
    return int((await connection.execute(query)).scalar_one())
