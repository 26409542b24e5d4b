"""Keys of services in Postgres; every process knows them all, read twice a second."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog

from server.domain.clock import Clock
from server.domain.credentials.service_keys import ServiceKey
from server.domain.errors import StoreUnavailable
from server.store.connect import Database
from server.store.mapping import columns_of, entity_of
from server.store.tables import service_keys as table

log = structlog.get_logger()
SECONDS_BETWEEN_LOOKS = 0.5
_SHOWN = columns_of(ServiceKey, table)
_IN_FORCE = table.c.revoked_at.is_(None)


class PostgresServiceKeys:
    """Keeps keys, and knows them all in this process."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[bytes, ServiceKey] = {}
        self._used: set[int] = set()

    async def add(
        self,
        name: str,
        digest: bytes,
        private_fields: bool,
        now: datetime,
        expires_at: datetime | None,
    ) -> ServiceKey:
        """Write a new key; this process knows it at once."""
        row: dict[str, Any] = {
            "name": name,
            "digest": digest,
            "private_fields": private_fields,
            "created_at": now,
            "expires_at": expires_at,
        }
        statement = sa.insert(table).values(row).returning(*_SHOWN)
        async with self._database.transaction() as connection:
            key = entity_of(ServiceKey, (await connection.execute(statement)).one())
        self._known[digest] = key
        return key

    async def all(self) -> Sequence[ServiceKey]:
        """Give the keys that were not revoked, by id."""
        query = sa.select(*_SHOWN).where(_IN_FORCE).order_by(table.c.id)
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            return [entity_of(ServiceKey, row) for row in rows]

    async def revoke(self, key_id: int, now: datetime) -> bool:
        """Revoke a key, here at once; tell whether there was one."""
        statement = (
            sa.update(table)
            .where(table.c.id == key_id, _IN_FORCE)
            .values(revoked_at=now)
            .returning(table.c.digest)
        )
        async with self._database.transaction() as connection:
            digest = (await connection.execute(statement)).scalar()
        self._known.pop(digest, None)
        return digest is not None

    def known(self, digest: bytes) -> ServiceKey | None:
        """Give the key with this hash, without waiting, and note that it is used."""
        key = self._known.get(digest)
        if key:
            self._used.add(key.id)
        return key

    async def refresh(self) -> None:
        """Read the keys in force and note their use. Raises StoreUnavailable."""
        used, self._used = self._used, set()
        query = sa.select(table.c.digest, *_SHOWN).where(_IN_FORCE)
        async with self._database.reading() as connection:
            if used:
                statement = sa.update(table).where(table.c.id.in_(used))
                now = self._clock()
                await connection.execute(statement.values(last_used_at=now))
            rows = (await connection.execute(query)).all()
        self._known = {row.digest: entity_of(ServiceKey, row) for row in rows}

    async def run(self) -> None:
        """Look twice a second, until cancelled."""
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            try:
                await self.refresh()
            except StoreUnavailable as error:
                log.warning("service keys cannot be read", cause=repr(error.__cause__))
