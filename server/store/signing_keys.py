"""Signing keys in Postgres, encrypted under a key derived from SECRET_KEY.

Shared by all processes: the first one makes them, the others find them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
import structlog
from cryptography.fernet import InvalidToken
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.clock import Clock
from server.domain.credentials.secret_key import SecretKey
from server.domain.credentials.tokens import KeyRing, KeyState, SigningKey
from server.domain.errors import StoreUnavailable
from server.store.connect import Database
from server.store.tables import signing_keys

log = structlog.get_logger()
SECONDS_BETWEEN_LOOKS = 30.0
_LOCK = 7_061_002  # one process at a time makes the first keys


class UnreadableKeys(Exception):
    """The keys were encrypted under another SECRET_KEY."""

    def __init__(self) -> None:
        super().__init__(
            "the signing keys in the database were encrypted under another SECRET_KEY: "
            "give that one as SECRET_KEY, or as SECRET_KEY_PREVIOUS beside a new one"
        )


class PostgresSigningKeys:
    """Keeps this process's KeyRing as Postgres says."""

    def __init__(
        self, database: Database, secret: SecretKey, ring: KeyRing, clock: Clock
    ) -> None:
        self._database = database
        self._box = secret.box("signing-keys")
        self._present = SecretKey(secret.present).box("signing-keys")
        self._ring = ring
        self._clock = clock

    async def look(self) -> None:
        """Read the keys, making the first ones if there are none.

        Raises StoreUnavailable, UnreadableKeys.
        """
        async with self._database.transaction() as connection:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            rows = (await connection.execute(sa.select(signing_keys))).all()
            if not rows:
                await self._make(connection)
                rows = (await connection.execute(sa.select(signing_keys))).all()
            try:
                self._ring.replace(self._open(row) for row in rows)
            except InvalidToken as error:
                raise UnreadableKeys from error
            await self._encrypt_anew(connection, rows)

    async def follow(self) -> None:
        """Read them again every half minute, until cancelled."""
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            try:
                await self.look()
            except (StoreUnavailable, UnreadableKeys) as error:
                log.warning("signing keys cannot be read", cause=str(error))

    async def _encrypt_anew(
        self, connection: AsyncConnection, rows: Sequence[sa.Row[Any]]
    ) -> None:
        """Encrypt under the present secret what the previous one still holds."""
        for row in rows:
            try:
                self._present.decrypt(row.encrypted_private_key)
            except InvalidToken:
                again = self._box.rotate(row.encrypted_private_key)
                await connection.execute(
                    sa.update(signing_keys)
                    .where(signing_keys.c.kid == row.kid)
                    .values(encrypted_private_key=again)
                )

    def _open(self, row: sa.Row[tuple[object, ...]]) -> SigningKey:
        pem = self._box.decrypt(row.encrypted_private_key)
        return SigningKey.load(row.kid, KeyState(row.state), pem)

    async def _make(self, connection: AsyncConnection) -> None:
        rows = [
            {
                "kid": key.kid,
                "state": key.state,
                "encrypted_private_key": self._box.encrypt(key.pem),
                "created_at": self._clock(),
            }
            for key in map(SigningKey.generate, (KeyState.ACTIVE, KeyState.NEXT))
        ]
        await connection.execute(insert(signing_keys).values(rows))
