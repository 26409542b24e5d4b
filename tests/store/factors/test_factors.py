"""Factors in Postgres: their number, each use once, and the last way in."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
import sqlalchemy as sa

from server.domain.callers import Caller
from server.domain.credentials.revocations import Revocations
from server.domain.errors import LastWayIn, TokenInvalid, TooManyFactors
from server.domain.factors.factors import MAX_FACTORS
from server.domain.factors.methods import FactorType
from server.store.connections.connect import Database
from server.store.connections.guarded_redis import redis_client
from server.store.credentials.revocations import RevocationFeed
from server.store.factors.factors import PostgresFactors
from server.store.factors.uses import PostgresFactorUses
from server.store.tables import factors, identities, users
from tests.fakes import NOON, Clock
from tests.store.conftest import StoresUnderTest
from tests.store.test_sessions import opened


@pytest_asyncio.fixture
async def store(database: Database, redis_url: str) -> AsyncIterator[PostgresFactors]:
    redis, clock = redis_client(redis_url), Clock(NOON)
    feed = RevocationFeed(database, redis, Revocations(clock), clock)
    yield PostgresFactors(database, feed)
    await redis.aclose()


@pytest_asyncio.fixture
async def caller(real_stores: StoresUnderTest) -> Caller:
    session = await opened(real_stores)
    return Caller(session.user_id, session.name)


async def write(database: Database, *statements: sa.Executable) -> None:
    async with database.transaction() as connection:
        for statement in statements:
            await connection.execute(statement)


def without_password(caller: Caller) -> sa.Executable:
    return (
        sa.update(users).where(users.c.id == caller.user_id).values(hashed_password="")
    )


def passkey(caller: Caller, number: int = 1) -> sa.Executable:
    return sa.insert(factors).values(
        user_id=caller.user_id,
        type=FactorType.PASSKEY,
        name=f"passkey {number}",
        credential_id=bytes([number]),
        created_at=NOON,
        confirmed_at=NOON,
    )


async def ids_of(store: PostgresFactors, caller: Caller) -> list[int]:
    return [factor.id for factor in (await store.all_of(caller.user_id)).factors]


async def test_last_way_in_is_not_deleted(
    store: PostgresFactors, database: Database, caller: Caller
) -> None:
    """Without a password, one of two passkeys goes; the other one stays."""
    await write(
        database, without_password(caller), passkey(caller, 1), passkey(caller, 2)
    )
    first, second = await ids_of(store, caller)
    await store.delete(first, caller.user_id, NOON)
    with pytest.raises(LastWayIn):
        await store.delete(second, caller.user_id, NOON)
    assert await ids_of(store, caller) == [second]


async def test_identity_is_a_way_in(
    store: PostgresFactors, database: Database, caller: Caller
) -> None:
    identity = sa.insert(identities).values(
        user_id=caller.user_id,
        issuer="https://id.example",
        subject="1",
        provider="example",
        created_at=NOON,
    )
    await write(database, without_password(caller), passkey(caller), identity)
    (only,) = await ids_of(store, caller)
    await store.delete(only, caller.user_id, NOON)
    assert await ids_of(store, caller) == []


async def test_authenticator_app_is_no_way_in(
    store: PostgresFactors, database: Database, caller: Caller
) -> None:
    """A code alone opens no session: the passkey beside it stays."""
    await write(database, without_password(caller), passkey(caller))
    app = await store.add_totp(caller.user_id, "phone", b"secret", NOON)
    await store.confirm_totp(caller, app, 7, [], NOON)
    key = next(each for each in await ids_of(store, caller) if each != app)
    with pytest.raises(LastWayIn):
        await store.delete(key, caller.user_id, NOON)
    await store.delete(app, caller.user_id, NOON)


async def test_number_of_factors_is_limited(
    store: PostgresFactors, database: Database, caller: Caller
) -> None:
    """One that is not confirmed does not count: the next one replaces it."""
    keys = [passkey(caller, number) for number in range(MAX_FACTORS - 1)]
    await write(database, *keys)
    await store.add_totp(caller.user_id, "old", b"secret", NOON)
    app = await store.add_totp(caller.user_id, "phone", b"secret", NOON)
    later = NOON + timedelta(minutes=1)
    await store.confirm_totp(caller, app, 7, [], later)
    with pytest.raises(TooManyFactors):
        await store.add_totp(caller.user_id, "one more", b"secret", later)


async def test_ended_session_confirms_no_factor(
    store: PostgresFactors, real_stores: StoresUnderTest, caller: Caller
) -> None:
    """It may end between the creation and the confirmation."""
    app = await store.add_totp(caller.user_id, "phone", b"secret", NOON)
    await real_stores.sessions.end_all(caller.user_id, NOON)
    with pytest.raises(TokenInvalid):
        await store.confirm_totp(caller, app, 7, [b"code"], NOON)
    assert await ids_of(store, caller) == []


async def test_step_is_used_once_by_calls_that_read_it_at_the_same_time(
    store: PostgresFactors, database: Database, caller: Caller
) -> None:
    """Each has read an older step: the statement decides. No older step follows."""
    app = await store.add_totp(caller.user_id, "phone", b"secret", NOON)
    await store.confirm_totp(caller, app, 7, [], NOON)
    uses = PostgresFactorUses(database)
    results = await asyncio.gather(
        *(uses.use_totp(app, 9, b"secret", NOON) for _ in range(3))
    )
    assert sorted(results) == [False, False, True]
    assert not await uses.use_totp(app, 8, b"secret", NOON)
    assert await uses.use_totp(app, 10, b"secret", NOON)


async def test_recovery_code_is_used_once(
    store: PostgresFactors, database: Database, caller: Caller
) -> None:
    app = await store.add_totp(caller.user_id, "phone", b"secret", NOON)
    await store.confirm_totp(caller, app, 7, [b"code", b"other"], NOON)
    uses = PostgresFactorUses(database)
    results = await asyncio.gather(
        *(uses.use_recovery_code(caller.user_id, b"code", NOON) for _ in range(3))
    )
    assert sorted(results) == [False, False, True]
    assert (await store.all_of(caller.user_id)).recovery_codes_left == 1
