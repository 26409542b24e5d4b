"""Signing keys are made once, kept encrypted, and shared."""

import asyncio

import pytest
import sqlalchemy as sa

from server.domain.credentials.secret_key import SecretKey
from server.domain.credentials.tokens import KeyRing, KeyState
from server.store.connect import Database
from server.store.signing_keys import PostgresSigningKeys, UnreadableKeys
from server.store.tables import signing_keys
from tests.fakes import Clock


def keys(database: Database, secret: SecretKey) -> tuple[PostgresSigningKeys, KeyRing]:
    ring = KeyRing()
    return PostgresSigningKeys(database, secret, ring, Clock()), ring


async def test_processes_that_start_together_share_them(database: Database) -> None:
    """R17: one active and one next key, the same for all."""
    secret = SecretKey("s" * 32)
    started = [keys(database, secret) for _ in range(5)]
    await asyncio.gather(*(store.look() for store, _ in started))
    assert len({ring.active.kid for _, ring in started}) == 1
    states = sorted(key.state for key in started[0][1].keys.values())
    assert states == [KeyState.NEXT, KeyState.ACTIVE]


async def test_they_are_kept_encrypted(database: Database) -> None:
    store, _ = keys(database, SecretKey("s" * 32))
    await store.look()
    async with database.reading() as connection:
        rows = (await connection.execute(sa.select(signing_keys))).all()
    assert all(b"PRIVATE KEY" not in row.encrypted_private_key for row in rows)


async def test_another_secret_is_told(database: Database) -> None:
    """A changed SECRET_KEY needs the old one beside it, and says so."""
    store, ring = keys(database, SecretKey("s" * 32))
    await store.look()
    other, _ = keys(database, SecretKey("t" * 32))
    with pytest.raises(UnreadableKeys):
        await other.look()
    changed, same = keys(database, SecretKey("t" * 32, "s" * 32))
    await changed.look()
    assert same.active.kid == ring.active.kid
    alone, still = keys(database, SecretKey("t" * 32))
    await alone.look()
    assert still.active.kid == ring.active.kid
