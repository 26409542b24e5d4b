"""Passkeys in Postgres: their creation, and their uses, each one statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from server.domain.audit import pending_event
from server.domain.callers import Caller
from server.domain.errors import FactorNotFound, InvalidCredentials, PasskeyInvalid
from server.domain.factors.factors import Factor
from server.domain.factors.methods import FactorType
from server.domain.factors.passkeys import Passkey
from server.domain.factors.relying_party import (
    AuthenticatorState,
    Credential,
    NewPasskey,
)
from server.domain.outbox.entries import EventType
from server.store.change_records import AUDIT_ROWS, INSERT_AUDIT, render_events
from server.store.connections.connect import Database
from server.store.credentials.revocations import RevocationFeed
from server.store.factors.factors import add, confirm
from server.store.pool.statement import Statement
from server.store.tables import factors as table
from server.store.write_transaction import map_violations

COPY_EVENT = "passkey.copied"
_UNCONFIRMED = Statement(
    f"""
    select id from factors
    where id = :id and user_id = :user_id and type = {FactorType.PASSKEY:d}
        and confirmed_at is null
    """  # noqa: S608 - a constant
)
_CREDENTIALS = Statement(
    f"""
    select credential_id, transports from factors
    where user_id = :user_id and type = {FactorType.PASSKEY:d}
        and confirmed_at is not null
    order by id
    """  # noqa: S608 - a constant
)
_BY_CREDENTIAL = Statement(
    """
    select id, user_id, public_key from factors
    where credential_id = :credential_id and confirmed_at is not null
    """
)
_USE = Statement(
    """
    update factors set
        sign_count = :sign_count, is_backed_up = :is_backed_up, last_used_at = :now
    where id = :id
        and (sign_count < :sign_count or (sign_count = 0 and :sign_count = 0))
    returning id
    """
)
_REPORT_COPY = Statement(
    f"""
    with copied as (select user_id, name from factors where id = :id),
    audited as (
        {INSERT_AUDIT}
        select at, event, actor, copied.user_id, address, outcome, request_id
        from copied, {AUDIT_ROWS}
    )
    insert into outbox (kind, user_id, payload, created_at)
    select '{EventType.PASSKEY_COPIED}', user_id, jsonb_build_object('factor', name),
        :now
    from copied
    """  # noqa: S608 - no values
)


class PostgresPasskeys:
    """Stores passkeys; a change of them locks the account first."""

    def __init__(self, database: Database, feed: RevocationFeed) -> None:
        self._database = database
        self._feed = feed

    async def add(self, user_id: int, name: str, now: datetime) -> int:
        """Write a passkey without effect in place of an earlier one; return its id.

        Raises TooManyFactors.
        """
        values = {"name": name, "created_at": now}
        async with self._database.transaction() as connection:
            return await add(connection, user_id, FactorType.PASSKEY, values)

    async def is_unconfirmed(self, user_id: int, factor_id: int) -> bool:
        """Return whether the user has this passkey, and it is not confirmed."""
        rows = await self._database.run(_UNCONFIRMED, id=factor_id, user_id=user_id)
        return bool(rows)

    async def confirm(
        self,
        caller: Caller,
        factor_id: int,
        passkey: NewPasskey,
        code_digests: Sequence[bytes],
        now: datetime,
    ) -> tuple[Factor, bool]:
        """Confirm a passkey; return it, and whether it is the first factor.

        The first one writes the recovery codes. The caller's session has two factors
        from now on, and the other sessions end. Raises FactorNotFound, TokenInvalid;
        PasskeyInvalid if an account has this passkey already.
        """
        values = {
            "credential_id": passkey.credential_id,
            "public_key": passkey.public_key,
            "sign_count": passkey.sign_count,
            "is_backed_up": passkey.is_backed_up,
            "transports": list(passkey.transports),
            "confirmed_at": now,
        }
        pending = (table.c.id == factor_id, table.c.type == FactorType.PASSKEY)
        with map_violations({"uq_factors_credential_id": _known_credential}):
            async with self._database.transaction() as connection:
                factor, is_first, ended = await confirm(
                    connection, caller, pending, values, code_digests, now
                )
        if factor is None:
            raise FactorNotFound(factor_id)
        await self._feed.ended(ended, now)
        return factor, is_first

    async def credentials(self, user_id: int) -> Sequence[Credential]:
        """Return the confirmed passkeys of a user."""
        rows = await self._database.run(_CREDENTIALS, user_id=user_id)
        return [Credential(row["credential_id"], row["transports"]) for row in rows]

    async def by_credential(self, credential_id: bytes) -> Passkey | None:
        """Return the confirmed passkey with this credential id."""
        rows = await self._database.run(_BY_CREDENTIAL, credential_id=credential_id)
        return Passkey(**rows[0]) if rows else None

    async def use(
        self, passkey_id: int, state: AuthenticatorState, now: datetime
    ) -> bool:
        """Note a use of a passkey; False if its counter is not above the last one.

        A passkey that does not count has the counter 0 always.
        """
        rows = await self._database.run(
            _USE,
            id=passkey_id,
            sign_count=state.sign_count,
            is_backed_up=state.is_backed_up,
            now=now,
        )
        return bool(rows)

    async def report_copy(self, passkey_id: int, now: datetime) -> None:
        """Inform the owner of a passkey whose counter has gone back, and audit it.

        The event of the call itself, which fails, is another one.
        """
        pending = pending_event.get()
        event = (
            replace(
                pending.build(0), event=COPY_EVENT, outcome=InvalidCredentials.reason
            )
            if pending
            else None
        )
        audit = render_events([event] if event else [])
        await self._database.run(_REPORT_COPY, id=passkey_id, now=now, audit=audit)


def _known_credential() -> PasskeyInvalid:
    return PasskeyInvalid("an account has this passkey already")
