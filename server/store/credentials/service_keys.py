"""Service keys in Postgres; every process holds all of them and polls for changes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from server.domain.clock import Clock
from server.domain.credentials.service_keys import ServiceKey
from server.store.change_records import audit_change
from server.store.connections.connect import Database
from server.store.connections.signals import Signals
from server.store.tables import service_keys as table

_KEY_COLUMNS = (
    table.c.id,
    table.c.name,
    table.c.private_fields,
    table.c.created_at,
    table.c.expires_at,
    table.c.last_used_at,
)
_IN_FORCE = table.c.revoked_at.is_(None)


class PostgresServiceKeys:
    """Stores keys, and holds those in force in this process."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[bytes, ServiceKey] = {}
        self._used: set[int] = set()
        self._changes = 0  # additions and revocations in this process

    async def add(
        self,
        name: str,
        digest: bytes,
        private_fields: bool,
        now: datetime,
        expires_at: datetime | None,
    ) -> ServiceKey:
        """Write a new key; this process accepts it at once."""
        row: dict[str, Any] = {
            "name": name,
            "digest": digest,
            "private_fields": private_fields,
            "created_at": now,
            "expires_at": expires_at,
        }
        statement = sa.insert(table).values(row).returning(*_KEY_COLUMNS)
        async with self._database.transaction() as connection:
            key = _service_key((await connection.execute(statement)).one())
            await audit_change(connection)
        self._changes += 1
        self._known[digest] = key
        return key

    async def all(self) -> Sequence[ServiceKey]:
        """Return the keys that were not revoked, by id."""
        query = sa.select(*_KEY_COLUMNS).where(_IN_FORCE).order_by(table.c.id)
        async with self._database.reading() as connection:
            return [_service_key(row) for row in await connection.execute(query)]

    async def revoke(self, key_id: int, now: datetime) -> bool:
        """Revoke a key, in this process at once; return whether it was in force."""
        statement = (
            sa.update(table)
            .where(table.c.id == key_id, _IN_FORCE)
            .values(revoked_at=now)
            .returning(table.c.digest)
        )
        async with self._database.transaction() as connection:
            digest = (await connection.execute(statement)).scalar()
            if digest:
                await audit_change(connection)
        self._changes += 1
        self._known.pop(digest, None)
        return digest is not None

    def known(self, digest: bytes) -> ServiceKey | None:
        """Return the key with this hash, from memory, and record its use."""
        key = self._known.get(digest)
        if key:
            self._used.add(key.id)
        return key

    def named(self, name: str, now: datetime) -> ServiceKey | None:
        """Return the newest valid key of a name, from memory, and record its use."""
        keys = (
            key
            for key in self._known.values()
            if key.name == name and key.is_valid(now)
        )
        newest = max(keys, key=attrgetter("id"), default=None)
        if newest:
            self._used.add(newest.id)
        return newest

    async def follow(self, signals: Signals) -> None:
        """Refresh if keys were used, added or revoked. Raises StoreUnavailable."""
        known = sorted(key.id for key in self._known.values())
        if self._used or known != signals.service_key_ids:
            await self.refresh()

    async def refresh(self) -> None:
        """Read the keys in force and write their use. Raises StoreUnavailable."""
        used, self._used = self._used, set()
        try:
            await self._exchange(used)
        except BaseException:
            self._used |= used  # to be written by the next poll
            raise

    async def _exchange(self, used: Collection[int]) -> None:
        query = sa.select(table.c.digest, *_KEY_COLUMNS).where(_IN_FORCE)
        async with self._database.reading() as connection:
            if used:
                statement = sa.update(table).where(table.c.id.in_(used))
                now = self._clock()
                await connection.execute(statement.values(last_used_at=now))
            changes = -1
            while changes != self._changes:  # else rows may be older than a change
                changes = self._changes
                rows = (await connection.execute(query)).all()
            self._known = {row.digest: _service_key(row) for row in rows}


def _service_key(row: Any) -> ServiceKey:
    return ServiceKey(
        id=row.id,
        name=row.name,
        private_fields=row.private_fields,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )
