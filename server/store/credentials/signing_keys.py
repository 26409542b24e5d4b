"""Signing keys in Postgres, encrypted under a key derived from SECRET_KEY.

All processes share them: the first one creates them, the others read them, and a
Redis message makes them read again after a rotation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from cryptography.fernet import InvalidToken
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.clock import Clock
from server.domain.credentials.rotation import KeyInfo, expired_keys
from server.domain.credentials.secret_key import SecretKey
from server.domain.credentials.tokens import KeyRing, KeyState, SigningKey
from server.domain.errors import NextKeyTooNew, StoreUnavailable
from server.store.change_records import audit_change
from server.store.connections.connect import Database
from server.store.connections.wakeup_channel import WakeupChannel
from server.store.tables import signing_keys

log = structlog.get_logger()
CHANNEL = "academy:signing-keys"
CIPHER_PURPOSE = "signing-keys"
POLL_INTERVAL = timedelta(seconds=30)
ON_DEMAND_INTERVAL_SECONDS = 1.0
ON_DEMAND_WAIT_SECONDS = 0.5
CLOCK_RESOLUTION = timedelta(microseconds=1)
_LOCK = 7_061_002  # one process at a time creates and deletes keys
_NEWEST_FIRST = sa.select(signing_keys).order_by(
    signing_keys.c.created_at.desc(), signing_keys.c.state
)


class UnreadableKeys(Exception):
    """The keys were encrypted with another SECRET_KEY."""

    def __init__(self) -> None:
        super().__init__(
            "the signing keys in the database were encrypted with another SECRET_KEY: "
            "set SECRET_KEY or SECRET_KEY_PREVIOUS to that key"
        )


class PostgresSigningKeys:
    """Stores signing keys and keeps this process's KeyRing up to date."""

    def __init__(
        self,
        database: Database,
        redis: Redis,
        secret: SecretKey,
        ring: KeyRing,
        clock: Clock,
    ) -> None:
        self._database = database
        self._cipher = secret.cipher(CIPHER_PURPOSE)
        self._current_cipher = SecretKey(secret.current).cipher(CIPHER_PURPOSE)
        self._ring = ring
        self._clock = clock
        self._wakeups = WakeupChannel(redis, CHANNEL)
        self._on_demand: asyncio.Task[None] | None = None
        self._on_demand_at = 0.0
        self.active_created_at: datetime | None = None  # of the key that signs
        ring.read_again = self._refresh_if_due
        self.listen = self._wakeups.listen
        self.wake = self._wakeups.wake

    async def refresh(self) -> None:
        """Read the keys; create the first ones if there are none.

        Raises StoreUnavailable, UnreadableKeys.
        """
        async with self._keys() as (connection, rows):
            if not rows:
                rows = await self._create(connection)
            keys = self._decrypt_all(rows)
            await self._reencrypt(connection, rows)
        self._replace(keys, rows)

    async def rotate(self, published_before: datetime | None) -> Sequence[KeyInfo]:
        """Make the next key sign, in every process; return the keys after that.

        Raises NextKeyTooNew if the next key was created after `published_before`.
        """
        async with self._keys() as (connection, rows):
            states = {row.state: row for row in rows}
            active, following = states[KeyState.ACTIVE], states[KeyState.NEXT]
            if published_before and following.created_at > published_before:
                raise NextKeyTooNew(following.created_at - published_before)
            # in this order: a unique index allows one active key
            await _set_state(connection, active.kid, KeyState.RETIRED)
            await _set_state(connection, following.kid, KeyState.ACTIVE)
            # the order of creation says when each key was retired
            created_at = max(self._clock(), following.created_at + CLOCK_RESOLUTION)
            await self._write(connection, KeyState.NEXT, created_at)
            rows = (await connection.execute(_NEWEST_FIRST)).all()
            keys = self._decrypt_all(rows)
            await audit_change(connection)
        self._replace(keys, rows)
        self._wakeups.publish()
        return [_info(row) for row in rows]

    def _replace(self, keys: Sequence[SigningKey], rows: Sequence[sa.Row[Any]]) -> None:
        self._ring.replace(keys)
        active = (row for row in rows if row.state == KeyState.ACTIVE)
        self.active_created_at = next((row.created_at for row in active), None)

    async def all(self) -> Sequence[KeyInfo]:
        """Return the keys, the newest first."""
        async with self._database.reading() as connection:
            return [_info(row) for row in await connection.execute(_NEWEST_FIRST)]

    async def _refresh_if_due(self) -> None:
        """Read the keys because a token names an unknown one, at most once a second.

        Callers in between share one read: tokens with made-up key ids must not cause
        a flood of queries (R14).
        """
        now = asyncio.get_running_loop().time()
        age = now - self._on_demand_at
        if self._on_demand is None or age >= ON_DEMAND_INTERVAL_SECONDS:
            self._on_demand_at = now
            self._on_demand = asyncio.create_task(self._refresh_or_log())
        await asyncio.wait((self._on_demand,), timeout=ON_DEMAND_WAIT_SECONDS)

    async def _refresh_or_log(self) -> None:
        try:
            await self.refresh()
        except (StoreUnavailable, UnreadableKeys) as error:
            log.warning("signing keys cannot be read", cause=str(error))

    @asynccontextmanager
    async def _keys(
        self,
    ) -> AsyncIterator[tuple[AsyncConnection, Sequence[sa.Row[Any]]]]:
        """Return the keys, locked for other processes; delete expired ones."""
        async with self._database.transaction() as connection:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            rows = (await connection.execute(_NEWEST_FIRST)).all()
            spent = expired_keys([_info(row) for row in rows], self._clock())
            if spent:
                expired = sa.delete(signing_keys).where(signing_keys.c.kid.in_(spent))
                await connection.execute(expired)
            yield connection, [row for row in rows if row.kid not in spent]

    def _decrypt_all(self, rows: Sequence[sa.Row[Any]]) -> Sequence[SigningKey]:
        try:
            return [self._decrypt(row) for row in rows]
        except InvalidToken as error:
            raise UnreadableKeys from error

    async def _reencrypt(
        self, connection: AsyncConnection, rows: Sequence[sa.Row[Any]]
    ) -> None:
        """Encrypt under the current secret the keys that the previous one encrypted."""
        for row in rows:
            try:
                self._current_cipher.decrypt(row.encrypted_private_key)
            except InvalidToken:
                encrypted = self._cipher.rotate(row.encrypted_private_key)
                await connection.execute(
                    sa.update(signing_keys)
                    .where(signing_keys.c.kid == row.kid)
                    .values(encrypted_private_key=encrypted)
                )

    def _decrypt(self, row: sa.Row[tuple[object, ...]]) -> SigningKey:
        pem = self._cipher.decrypt(row.encrypted_private_key)
        return SigningKey.load(row.kid, KeyState(row.state), pem)

    async def _create(self, connection: AsyncConnection) -> Sequence[sa.Row[Any]]:
        now = self._clock()
        await self._write(connection, KeyState.ACTIVE, now)
        await self._write(connection, KeyState.NEXT, now + CLOCK_RESOLUTION)
        return (await connection.execute(_NEWEST_FIRST)).all()

    async def _write(
        self, connection: AsyncConnection, state: KeyState, now: datetime
    ) -> None:
        key = SigningKey.generate(state)
        row = {
            "kid": key.kid,
            "state": key.state,
            "encrypted_private_key": self._cipher.encrypt(key.pem),
            "created_at": now,
        }
        await connection.execute(sa.insert(signing_keys).values(row))


async def _set_state(connection: AsyncConnection, kid: str, state: KeyState) -> None:
    change = sa.update(signing_keys).where(signing_keys.c.kid == kid)
    await connection.execute(change.values(state=state))


def _info(row: sa.Row[Any]) -> KeyInfo:
    return KeyInfo(row.kid, KeyState(row.state), row.created_at)
