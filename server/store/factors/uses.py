"""Uses of factors in Postgres, each once: one statement for each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from server.domain.factors.factors import TotpFactor
from server.domain.factors.methods import FactorType
from server.domain.outbox.entries import EventType
from server.store.change_records import audit_rows, audited, mark_audited
from server.store.connections.connect import Database
from server.store.pool.statement import Statement

_TOTP_FACTORS = Statement(
    f"""
    select id, secret, last_step from factors
    where user_id = :user_id and type = {FactorType.TOTP:d}
        and confirmed_at is not null
    order by id
    """  # noqa: S608 - a constant
)
_USE_TOTP = Statement(
    """
    update factors set last_step = :step, secret = :secret, last_used_at = :now
    where id = :id and last_step < :step
    returning id
    """
)
_USE_RECOVERY_CODE = Statement(
    f"""
    with used as (
        update recovery_codes set used_at = :now
        where user_id = :user_id and code_hash = :digest and used_at is null
        returning user_id
    ), enqueued as (
        insert into outbox (kind, user_id, payload, created_at)
        select '{EventType.RECOVERY_CODE_USED}', user_id, jsonb_build_object('left',
            (select count(*) - 1 from recovery_codes
                where user_id = :user_id and used_at is null)
        ), :now
        from used
    )
    select user_id from used
    """  # noqa: S608 - no values
)
_REAUTHENTICATE = Statement(
    f"""
    with changed as (
        update sessions set
            authenticated_at = :now,
            amr = amr || array(
                select method from unnest(cast(:methods as text[])) with ordinality
                    as given(method, position)
                where method <> all(amr) order by position
            )
        where id = :id and user_id = :user_id and ended_at is null
            and expires_at > :now
        returning user_id, amr
    ), {audited("changed")}
    select amr from changed
    """  # noqa: S608 - no values
)


class PostgresFactorUses:
    """Uses up what proves a factor, and writes reauthentications."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def totp_factors(self, user_id: int) -> Sequence[TotpFactor]:
        """Return the confirmed authenticator apps of a user."""
        rows = await self._database.run(_TOTP_FACTORS, user_id=user_id)
        return [TotpFactor(row["id"], row["secret"], row["last_step"]) for row in rows]

    async def use_totp(
        self, factor_id: int, step: int, secret: bytes, now: datetime
    ) -> bool:
        """Use a time step and all before it; False if it was used.

        The secret is stored again, as it is encrypted now.
        """
        rows = await self._database.run(
            _USE_TOTP, id=factor_id, step=step, secret=secret, now=now
        )
        return bool(rows)

    async def use_recovery_code(
        self, user_id: int, code_digest: bytes, now: datetime
    ) -> bool:
        """Use a recovery code, and inform its owner; False if there is none unused."""
        rows = await self._database.run(
            _USE_RECOVERY_CODE, user_id=user_id, digest=code_digest, now=now
        )
        return bool(rows)

    async def reauthenticate(
        self, session_id: UUID, user_id: int, methods: Sequence[str], now: datetime
    ) -> Sequence[str]:
        """Note in an open session that its user was authenticated now.

        Returns all its methods; none if the session has ended.
        """
        rows = await self._database.run(
            _REAUTHENTICATE,
            id=session_id,
            user_id=user_id,
            methods=list(methods),
            now=now,
            audit=audit_rows(),
        )
        if not rows:
            return ()
        mark_audited()
        return tuple(rows[0]["amr"])
