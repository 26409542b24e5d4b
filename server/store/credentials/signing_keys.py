"""Signing keys in Postgres, encrypted under a key derived from SECRET_KEY.

Shared by all processes: the first one makes them, the others find them, and Redis
carries a hint that there are others.
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
from server.domain.credentials.rotation import KeyInfo, spent_keys
from server.domain.credentials.secret_key import SecretKey
from server.domain.credentials.tokens import KeyRing, KeyState, SigningKey
from server.domain.errors import NextKeyTooNew, StoreUnavailable
from server.store.connect import Database
from server.store.tables import signing_keys
from server.store.wakeup_channel import WakeupChannel

log = structlog.get_logger()
CHANNEL = "academy:signing-keys"
SECONDS_BETWEEN_LOOKS = 30.0
SECONDS_BETWEEN_ASKED_LOOKS = 1.0
SECONDS_FOR_AN_ASKED_LOOK = 0.5
TICK = timedelta(microseconds=1)
_LOCK = 7_061_002  # one process at a time makes and removes keys
_NEWEST_FIRST = sa.select(signing_keys).order_by(
    signing_keys.c.created_at.desc(), signing_keys.c.state
)


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
        self,
        database: Database,
        redis: Redis,
        secret: SecretKey,
        ring: KeyRing,
        clock: Clock,
    ) -> None:
        self._database = database
        self._box = secret.box("signing-keys")
        self._present = SecretKey(secret.present).box("signing-keys")
        self._ring = ring
        self._clock = clock
        self._wakeups = WakeupChannel(redis, CHANNEL)
        self._asked: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        ring.look_again = self._refresh_if_due
        self.listen = self._wakeups.listen

    async def refresh(self) -> None:
        """Read the keys, making the first ones if there are none.

        Raises StoreUnavailable, UnreadableKeys.
        """
        async with self._keys() as (connection, rows):
            if not rows:
                rows = await self._make(connection)
            keys = self._opened(rows)
            await self._encrypt_anew(connection, rows)
        self._ring.replace(keys)

    async def rotate(self, published_before: datetime | None) -> Sequence[KeyInfo]:
        """Have the next key sign; every process learns it. Gives the keys as they are.

        Raises NextKeyTooNew if the next key was made after `published_before`.
        """
        async with self._keys() as (connection, rows):
            states = {row.state: row for row in rows}
            old, new = states[KeyState.ACTIVE], states[KeyState.NEXT]
            if published_before and new.created_at > published_before:
                raise NextKeyTooNew(new.created_at - published_before)
            # in this order: only one key may be active at any moment
            await _set_state(connection, old.kid, KeyState.RETIRED)
            await _set_state(connection, new.kid, KeyState.ACTIVE)
            # what was retired when is told by the order in which keys were made
            made_at = max(self._clock(), new.created_at + TICK)
            await self._write(connection, KeyState.NEXT, made_at)
            rows = (await connection.execute(_NEWEST_FIRST)).all()
            keys = self._opened(rows)
        self._ring.replace(keys)
        await self._wakeups.publish()
        return [_info(row) for row in rows]

    async def all(self) -> Sequence[KeyInfo]:
        """Give the keys, the newest first."""
        async with self._database.reading() as connection:
            return [_info(row) for row in await connection.execute(_NEWEST_FIRST)]

    async def run(self) -> None:
        """Read them again every half minute, and on a hint, until cancelled."""
        while True:
            await self._wakeups.wait(SECONDS_BETWEEN_LOOKS)
            try:
                await self.refresh()
            except (StoreUnavailable, UnreadableKeys) as error:
                log.warning("signing keys cannot be read", cause=str(error))

    async def _refresh_if_due(self) -> None:
        """Look for a key that a token names: once a second, however many ask.

        Who asks sooner is told what was found then: odd keys must not become a flood
        of look-ups (R14).
        """
        now = asyncio.get_running_loop().time()
        if self._asked is None or now - self._asked_at >= SECONDS_BETWEEN_ASKED_LOOKS:
            self._asked_at = now
            self._asked = asyncio.create_task(self._refresh_quietly())
        await asyncio.wait((self._asked,), timeout=SECONDS_FOR_AN_ASKED_LOOK)

    async def _refresh_quietly(self) -> None:
        try:
            await self.refresh()
        except (StoreUnavailable, UnreadableKeys) as error:
            log.warning("signing keys cannot be read", cause=str(error))

    @asynccontextmanager
    async def _keys(
        self,
    ) -> AsyncIterator[tuple[AsyncConnection, Sequence[sa.Row[Any]]]]:
        """Give the keys to one process at a time; those that are spent are removed."""
        async with self._database.transaction() as connection:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            rows = (await connection.execute(_NEWEST_FIRST)).all()
            spent = spent_keys([_info(row) for row in rows], self._clock())
            if spent:
                gone = sa.delete(signing_keys).where(signing_keys.c.kid.in_(spent))
                await connection.execute(gone)
            yield connection, [row for row in rows if row.kid not in spent]

    def _opened(self, rows: Sequence[sa.Row[Any]]) -> Sequence[SigningKey]:
        try:
            return [self._open(row) for row in rows]
        except InvalidToken as error:
            raise UnreadableKeys from error

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

    async def _make(self, connection: AsyncConnection) -> Sequence[sa.Row[Any]]:
        now = self._clock()
        await self._write(connection, KeyState.ACTIVE, now)
        await self._write(connection, KeyState.NEXT, now + TICK)
        return (await connection.execute(_NEWEST_FIRST)).all()

    async def _write(
        self, connection: AsyncConnection, state: KeyState, now: datetime
    ) -> None:
        key = SigningKey.generate(state)
        row = {
            "kid": key.kid,
            "state": key.state,
            "encrypted_private_key": self._box.encrypt(key.pem),
            "created_at": now,
        }
        await connection.execute(sa.insert(signing_keys).values(row))


async def _set_state(connection: AsyncConnection, kid: str, state: KeyState) -> None:
    change = sa.update(signing_keys).where(signing_keys.c.kid == kid)
    await connection.execute(change.values(state=state))


def _info(row: sa.Row[Any]) -> KeyInfo:
    return KeyInfo(row.kid, KeyState(row.state), row.created_at)
