"""Challenges in Postgres: each operation is one statement."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import orjson

from server.domain.factors.challenges import MAX_ATTEMPTS, Challenge, ChallengeKind
from server.store.connections.connect import Database
from server.store.pool.statement import Statement

_ADD = Statement(
    """
    insert into challenges (
        id, kind, user_id, secret_hash, data, version, address, device, created_at,
        expires_at
    ) values (
        :id, :kind, nullif(cast(:user_id as bigint), 0), :secret_hash, :data, :version,
        :network, :device, :created_at, :expires_at
    )
    """
)
_ATTEMPT = Statement(
    f"""
    update challenges set attempts = attempts + 1
    where id = :id and kind = :kind and secret_hash = :secret_hash
        and attempts < {MAX_ATTEMPTS} and expires_at > :now
    returning id, kind, secret_hash, created_at, expires_at,
        coalesce(user_id, 0) as user_id, coalesce(version, 0) as version,
        address as network, device, attempts, cast(data as text) as data
    """  # noqa: S608 - a constant
)
_CONSUME = Statement("delete from challenges where id = :id returning id")


class PostgresChallenges:
    """Stores challenges; expired ones are deleted by retention."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, challenge: Challenge) -> None:
        """Write a new challenge."""
        await self._database.run(
            _ADD,
            id=challenge.id,
            kind=challenge.kind,
            user_id=challenge.user_id,
            secret_hash=challenge.secret_hash,
            data=orjson.dumps(challenge.data).decode(),
            version=challenge.version,
            network=challenge.network,
            device=challenge.device,
            created_at=challenge.created_at,
            expires_at=challenge.expires_at,
        )

    async def attempt(
        self, challenge_id: UUID, kind: ChallengeKind, secret_hash: bytes, now: datetime
    ) -> Challenge | None:
        """Count an attempt, and return the challenge with it.

        None, and nothing is counted, if there is no such challenge, if it has expired,
        or if MAX_ATTEMPTS were made. Attempts at the same time are all counted.
        """
        rows = await self._database.run(
            _ATTEMPT, id=challenge_id, kind=kind, secret_hash=secret_hash, now=now
        )
        if not rows:
            return None
        values = dict(rows[0])
        values |= {
            "kind": ChallengeKind(values["kind"]),
            "data": orjson.loads(values["data"]),
        }
        return Challenge(**values)

    async def consume(self, challenge_id: UUID) -> bool:
        """Delete a challenge; True for the first call only."""
        return bool(await self._database.run(_CONSUME, id=challenge_id))
