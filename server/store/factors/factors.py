"""Factors in Postgres: adding, confirming, listing and deleting them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.callers import Caller
from server.domain.errors import FactorNotFound, FactorRequired, TooManyFactors
from server.domain.factors.factors import (
    MAX_FACTORS,
    Factor,
    FactorList,
    TotpFactor,
)
from server.domain.factors.methods import AuthMethod, FactorType, merged
from server.domain.outbox.entries import EventType, NewEntry
from server.store.change_records import audit_change, record
from server.store.connections.connect import Database
from server.store.credentials.account_locks import lock_for_session
from server.store.credentials.revocations import RevocationFeed, end_sessions
from server.store.factors.ways_in import bump_version, check_way_in
from server.store.tables import factors as table
from server.store.tables import recovery_codes, sessions, users

_CONFIRMED = table.c.confirmed_at.is_not(None)


class PostgresFactors:
    """Stores factors; a change of them locks the account first."""

    def __init__(self, database: Database, feed: RevocationFeed) -> None:
        self._database = database
        self._feed = feed

    async def add_totp(
        self, user_id: int, name: str, secret: bytes, now: datetime
    ) -> int:
        """Write a factor without effect in place of an earlier one; return its id.

        Raises TooManyFactors.
        """
        async with self._database.transaction() as connection:
            values = {"name": name, "secret": secret, "created_at": now}
            return await add(connection, user_id, FactorType.TOTP, values)

    async def unconfirmed_totp(self, user_id: int, factor_id: int) -> TotpFactor | None:
        """Return an authenticator app that is not confirmed."""
        query = sa.select(table.c.id, table.c.secret, table.c.last_step).where(
            table.c.id == factor_id,
            table.c.user_id == user_id,
            table.c.type == FactorType.TOTP,
            table.c.confirmed_at.is_(None),
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return TotpFactor(row.id, row.secret, row.last_step) if row else None

    async def confirm_totp(
        self,
        caller: Caller,
        factor_id: int,
        step: int,
        code_digests: Sequence[bytes],
        now: datetime,
    ) -> tuple[Factor, bool]:
        """Confirm an authenticator app; return it, and whether it is the first factor.

        The first one writes the recovery codes. The caller's session has two factors
        from now on, and the other sessions end. Raises FactorNotFound, TokenInvalid.
        """
        values = {"last_step": step, "confirmed_at": now}
        async with self._database.transaction() as connection:
            factor, is_first, ended = await confirm(
                connection,
                caller,
                (table.c.id == factor_id, table.c.type == FactorType.TOTP),
                values,
                code_digests,
                now,
            )
        if factor is None:
            raise FactorNotFound(factor_id)
        await self._feed.ended(ended, now)
        return factor, is_first

    async def all_of(self, user_id: int) -> FactorList:
        """Return the confirmed factors, in the order of their ids."""
        query = (
            sa.select(table)
            .where(table.c.user_id == user_id, _CONFIRMED)
            .order_by(table.c.id)
        )
        unused = sa.select(sa.func.count()).where(
            recovery_codes.c.user_id == user_id, recovery_codes.c.used_at.is_(None)
        )
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            listed = [_factor(row) for row in rows]
            left = (await connection.execute(unused)).scalar_one()
        return FactorList(listed, left)

    async def delete(self, factor_id: int, owner_id: int, now: datetime) -> None:
        """Delete a factor, of this user or, with 0, of any.

        With the last factor, the recovery codes go, too. Raises FactorNotFound,
        LastWayIn.
        """
        owned = [table.c.id == factor_id, _CONFIRMED]
        if owner_id:
            owned.append(table.c.user_id == owner_id)
        async with self._database.transaction() as connection:
            query = sa.select(table.c.user_id).where(*owned)
            user_id = (await connection.execute(query)).scalar()
            if user_id is None:
                raise FactorNotFound(factor_id)
            await lock_account(connection, user_id)
            statement = sa.delete(table).where(*owned).returning(table.c.name)
            name = (await connection.execute(statement)).scalar()
            if name is None:
                raise FactorNotFound(factor_id)
            await check_way_in(connection, user_id)
            if not await _has_factor(connection, user_id):
                await _replace_codes(connection, user_id, ())
            event = await bump_version(connection, user_id, now)
            mail = NewEntry(EventType.FACTOR_REMOVED, user_id, payload={"factor": name})
            await record(connection, now, event, mail, user_id=user_id)

    async def replace_codes(
        self, user_id: int, code_digests: Sequence[bytes], now: datetime
    ) -> None:
        """Replace the recovery codes. Raises FactorRequired without a factor."""
        async with self._database.transaction() as connection:
            await lock_account(connection, user_id)
            if not await _has_factor(connection, user_id):
                raise FactorRequired("the account has no second factor: add one first")
            await _replace_codes(connection, user_id, code_digests)
            mail = NewEntry(EventType.RECOVERY_CODES_REPLACED, user_id)
            await record(connection, now, mail, user_id=user_id)


async def lock_account(connection: AsyncConnection, user_id: int) -> None:
    """Lock an account: of changes of its factors, one waits for the other."""
    query = sa.select(users.c.id).where(users.c.id == user_id).with_for_update()
    await connection.execute(query)


async def add(
    connection: AsyncConnection, user_id: int, kind: FactorType, values: dict[str, Any]
) -> int:
    """Write a factor without effect in place of an earlier one; return its id.

    Raises TooManyFactors.
    """
    await lock_account(connection, user_id)
    await make_room(connection, user_id, kind)
    row = {"user_id": user_id, "type": kind, **values}
    added = sa.insert(table).values(row).returning(table.c.id)
    factor_id: int = (await connection.execute(added)).scalar_one()
    await audit_change(connection, user_id)
    return factor_id


async def make_room(
    connection: AsyncConnection, user_id: int, kind: FactorType
) -> None:
    """Delete the unconfirmed factors of a kind. Raises TooManyFactors."""
    unconfirmed = [table.c.user_id == user_id, table.c.confirmed_at.is_(None)]
    await connection.execute(sa.delete(table).where(*unconfirmed, table.c.type == kind))
    count = sa.select(sa.func.count()).where(table.c.user_id == user_id, _CONFIRMED)
    if (await connection.execute(count)).scalar_one() >= MAX_FACTORS:
        raise TooManyFactors(MAX_FACTORS)


async def confirm(
    connection: AsyncConnection,
    caller: Caller,
    pending: Sequence[sa.ColumnElement[bool]],
    values: dict[str, Any],
    code_digests: Sequence[bytes],
    now: datetime,
) -> tuple[Factor | None, bool, Sequence[UUID]]:
    """Confirm the caller's factor that `pending` selects, with these values.

    Returns it, None if there is none; whether it is the first one, with which the codes
    are written; and the sessions that ended, which are all but the caller's. Raises
    TokenInvalid if that one has ended.
    """
    user_id, keep = caller.user_id, UUID(caller.session_id)
    await lock_for_session(connection, user_id, keep)
    is_first = not await _has_factor(connection, user_id)
    unconfirmed = [table.c.user_id == user_id, table.c.confirmed_at.is_(None)]
    change = sa.update(table).where(*pending, *unconfirmed).values(values)
    row = (await connection.execute(change.returning(*table.c))).first()
    if row is None:
        return None, False, ()
    if is_first:
        await _replace_codes(connection, user_id, code_digests)
    await _raise_level(connection, keep, row.type)
    ended = await end_sessions(connection, user_id, now, keep)
    event = await bump_version(connection, user_id, now)
    is_passkey = row.type == FactorType.PASSKEY
    kind = EventType.PASSKEY_ADDED if is_passkey else EventType.FACTOR_ADDED
    mail = NewEntry(kind, user_id, payload={"factor": row.name})
    await record(connection, now, event, mail, user_id=user_id)
    return _factor(row), is_first, ended


async def _raise_level(
    connection: AsyncConnection, session_id: UUID, kind: FactorType
) -> None:
    """Note in a session that its user has proven a second factor."""
    used = {
        FactorType.TOTP: AuthMethod.ONE_TIME_CODE,
        FactorType.PASSKEY: AuthMethod.PASSKEY,
    }
    query = sa.select(sessions.c.amr).where(sessions.c.id == session_id)
    methods = (await connection.execute(query)).scalar_one()
    raised = merged(methods, (used[FactorType(kind)], AuthMethod.MULTI_FACTOR))
    change = sa.update(sessions).where(sessions.c.id == session_id)
    await connection.execute(change.values(amr=list(raised)))


async def _has_factor(connection: AsyncConnection, user_id: int) -> bool:
    query = sa.select(table.c.id).where(table.c.user_id == user_id, _CONFIRMED)
    return (await connection.execute(query.limit(1))).first() is not None


async def _replace_codes(
    connection: AsyncConnection, user_id: int, digests: Sequence[bytes]
) -> None:
    previous = sa.delete(recovery_codes).where(recovery_codes.c.user_id == user_id)
    await connection.execute(previous)
    if digests:
        rows = [{"user_id": user_id, "code_hash": digest} for digest in digests]
        await connection.execute(sa.insert(recovery_codes), rows)


def _factor(row: sa.Row[Any]) -> Factor:
    return Factor(
        id=row.id,
        type=FactorType(row.type),
        name=row.name,
        confirmed_at=row.confirmed_at,
        last_used_at=row.last_used_at,
        is_backed_up=row.is_backed_up,
    )
