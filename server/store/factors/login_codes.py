"""Codes of log-ins in Postgres: a challenge gets its account and its code."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import orjson

from server.domain.factors.challenges import ChallengeKind
from server.store.connections.connect import Database
from server.store.pool.statement import Statement

# A repeated delivery writes the same again.
_ISSUE = Statement(
    f"""
    update challenges
    set user_id = users.id, version = users.version, data = cast(:data as jsonb)
    from users
    where challenges.id = :id and challenges.kind = {ChallengeKind.LOGIN_CODE:d}
        and challenges.expires_at > :now
        and coalesce(challenges.user_id, users.id) = users.id
        and users.id = :user_id and users.email = :address
        and users.is_active and users.deleted_at is null
        and users.updated_at <= challenges.created_at
    returning challenges.id
    """  # noqa: S608 - a constant
)


class PostgresLoginCodes:
    """Writes which code completes a challenge."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def issue(
        self,
        challenge_id: UUID,
        user_id: int,
        address: str,
        data: dict[str, str],
        now: datetime,
    ) -> bool:
        """Assign a challenge to an account; return False if it must have no code.

        So it is if the challenge has expired, or if the account has changed since the
        request, is disabled or deleted, or has another address.
        """
        rows = await self._database.run(
            _ISSUE,
            id=challenge_id,
            user_id=user_id,
            address=address,
            data=orjson.dumps(data).decode(),
            now=now,
        )
        return bool(rows)
