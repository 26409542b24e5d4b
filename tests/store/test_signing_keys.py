"""Signing keys: created once, stored encrypted, shared by all processes."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import pytest
import sqlalchemy as sa

from server.domain.credentials.rotation import EXPIRED_AFTER, KeyInfo, SigningKeys
from server.domain.credentials.secret_key import SecretKey
from server.domain.credentials.tokens import KeyRing, KeyState
from server.domain.errors import NextKeyTooNew
from server.store.connections.connect import Database
from server.store.credentials.signing_keys import PostgresSigningKeys, UnreadableKeys
from server.store.redis.redis_client import redis_client
from server.store.tables import signing_keys
from tests.fakes import Clock


def keys(database: Database, secret: SecretKey) -> tuple[PostgresSigningKeys, KeyRing]:
    ring = KeyRing()
    redis = redis_client("unix:///nowhere")
    return PostgresSigningKeys(database, redis, secret, ring, Clock()), ring


async def test_signing_keys_are_shared_by_processes_that_start_together(
    database: Database,
) -> None:
    """R17: one active and one next key, the same in every process."""
    secret = SecretKey("s" * 32)
    started = [keys(database, secret) for _ in range(5)]
    await asyncio.gather(*(store.refresh() for store, _ in started))
    assert len({ring.active.kid for _, ring in started}) == 1
    states = sorted(key.state for key in started[0][1].keys.values())
    assert states == [KeyState.NEXT, KeyState.ACTIVE]


async def test_signing_keys_are_stored_encrypted(database: Database) -> None:
    store, _ = keys(database, SecretKey("s" * 32))
    await store.refresh()
    async with database.reading() as connection:
        rows = (await connection.execute(sa.select(signing_keys))).all()
    assert all(b"PRIVATE KEY" not in row.encrypted_private_key for row in rows)


async def test_signing_keys_need_their_secret_key(database: Database) -> None:
    """A changed SECRET_KEY needs the old one as SECRET_KEY_PREVIOUS once."""
    store, ring = keys(database, SecretKey("s" * 32))
    await store.refresh()
    other, _ = keys(database, SecretKey("t" * 32))
    with pytest.raises(UnreadableKeys):
        await other.refresh()
    changed, same = keys(database, SecretKey("t" * 32, "s" * 32))
    await changed.refresh()
    assert same.active.kid == ring.active.kid
    alone, still = keys(database, SecretKey("t" * 32))
    await alone.refresh()
    assert still.active.kid == ring.active.kid


async def test_signing_keys_stay_readable_during_a_rolling_change(
    database: Database,
) -> None:
    """Replicas with the old and the new SECRET_KEY read what the other encrypted.

    First each gets the new key as SECRET_KEY_PREVIOUS, then the two are exchanged.
    """
    old, new = "s" * 32, "t" * 32
    not_changed = [keys(database, SecretKey(old)), keys(database, SecretKey(old, new))]
    for store, _ in not_changed:
        await store.refresh()
    (before, ring), (after, same) = not_changed[1], keys(database, SecretKey(new, old))
    for store in (after, before, after, before, after):
        await store.refresh()
    assert same.active.kid == ring.active.kid
    await keys(database, SecretKey(new))[0].refresh()


def created_at(keys: Sequence[KeyInfo], state: KeyState) -> datetime:
    return next(key.created_at for key in keys if key.state is state)


async def test_signing_keys_rotation_creates_one_key_and_retires_one(
    database: Database,
) -> None:
    """R17: the next key signs, the active one verifies, in every process."""
    secret = SecretKey("s" * 32)
    (store, ring), (other, theirs) = keys(database, secret), keys(database, secret)
    await store.refresh()
    await other.refresh()
    before = {key.state: kid for kid, key in ring.keys.items()}
    assert store.active_created_at == created_at(await store.all(), KeyState.ACTIVE)
    rotated = await store.rotate(None)
    assert store.active_created_at == created_at(rotated, KeyState.ACTIVE)
    assert [key.state for key in rotated] == list(KeyState)
    after = {key.state: kid for kid, key in ring.keys.items()}
    assert after[KeyState.ACTIVE] == before[KeyState.NEXT]
    assert after[KeyState.RETIRED] == before[KeyState.ACTIVE]
    assert after[KeyState.NEXT] not in before.values()
    assert theirs.active.kid == before[KeyState.ACTIVE]
    await other.refresh()
    assert theirs.keys.keys() == ring.keys.keys()
    assert theirs.active.kid == ring.active.kid


async def test_signing_keys_concurrent_rotations_are_serialized(
    database: Database,
) -> None:
    """Each retires another key; one is active afterwards."""
    secret = SecretKey("s" * 32)
    started = [keys(database, secret) for _ in range(3)]
    await asyncio.gather(*(store.refresh() for store, _ in started))
    await asyncio.gather(*(store.rotate(None) for store, _ in started))
    rotated = await started[0][0].all()
    states = [key.state for key in rotated]
    assert states == [KeyState.NEXT, KeyState.ACTIVE, *[KeyState.RETIRED] * 3]
    assert len({key.created_at for key in rotated}) == 5


async def test_signing_keys_rotation_waits_until_next_key_is_published(
    database: Database,
) -> None:
    """Verifiers cache the key set for 300 s; the error says when to retry."""
    store, ring = keys(database, SecretKey("s" * 32))
    await store.refresh()
    clock = Clock()
    rules = SigningKeys(store, clock)
    clock.advance(60)
    with pytest.raises(NextKeyTooNew) as caught:
        await rules.rotate(force=False)
    assert caught.value.retry_after
    active = ring.active.kid
    clock.advance(caught.value.retry_after.total_seconds())
    await rules.rotate(force=False)
    assert ring.active.kid != active
    with pytest.raises(NextKeyTooNew):
        await rules.rotate(force=False)
    await rules.rotate(force=True)


async def test_signing_keys_retired_key_is_deleted_when_its_tokens_have_expired(
    database: Database,
) -> None:
    """Counted from its own retirement, not from that of other keys."""
    ring, clock = KeyRing(), Clock()
    redis = redis_client("unix:///nowhere")
    store = PostgresSigningKeys(database, redis, SecretKey("s" * 32), ring, clock)
    await store.refresh()
    first = ring.active.kid
    await store.rotate(None)
    second = ring.active.kid
    clock.advance(600)
    await store.rotate(None)
    clock.advance(EXPIRED_AFTER.total_seconds() - 600)
    await store.refresh()
    assert {first, second} < ring.keys.keys()
    clock.advance(1)
    await store.refresh()
    assert first not in ring.keys
    assert second in ring.keys
    clock.advance(600)
    await store.refresh()
    assert sorted(key.state for key in ring.keys.values()) == [
        KeyState.NEXT,
        KeyState.ACTIVE,
    ]


async def test_signing_keys_unknown_key_ids_cause_one_query_a_second(
    database: Database,
) -> None:
    """R14: tokens with made-up key ids must not cause a flood of queries."""
    store, ring = keys(database, SecretKey("s" * 32))
    await store.refresh()
    statements: list[str] = []
    sa.event.listen(
        database.engine.sync_engine,
        "before_cursor_execute",
        lambda _c, _k, statement, *_: statements.append(statement),
    )
    await asyncio.gather(*(ring.reload() for _ in range(50)))
    await ring.reload()
    assert sum("FROM signing_keys" in statement for statement in statements) == 1
