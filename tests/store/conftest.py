"""Every store in memory and on real servers, for one suite of tests."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from server.domain.credentials.revocations import Revocations
from server.store.accounts.users import PostgresUsers
from server.store.connections.connect import Database
from server.store.credentials.accounts import PostgresAccounts
from server.store.credentials.revocations import RevocationFeed
from server.store.credentials.sessions import PostgresSessions
from server.store.idempotent_responses import PostgresIdempotentResponses
from server.store.redis.redis_client import redis_client
from tests.fakes import NOON, Clock, FakeResponses, FakeSessions, FakeUsers


@dataclass(frozen=True, slots=True)
class StoresUnderTest:
    users: FakeUsers | PostgresUsers
    accounts: FakeUsers | PostgresAccounts
    sessions: FakeSessions | PostgresSessions
    answers: FakeResponses | PostgresIdempotentResponses


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@pytest_asyncio.fixture
async def real_stores(
    database: Database, redis_url: str
) -> AsyncIterator[StoresUnderTest]:
    redis, clock = redis_client(redis_url), Clock(NOON)
    feed = RevocationFeed(database, redis, Revocations(clock), clock)
    sessions = PostgresSessions(database, feed)
    users, accounts = PostgresUsers(database, feed), PostgresAccounts(database)
    yield StoresUnderTest(
        users, accounts, sessions, PostgresIdempotentResponses(database)
    )
    await redis.aclose()


@pytest.fixture
def fake_stores() -> StoresUnderTest:
    answers = FakeResponses()
    users = FakeUsers(answers)
    sessions = FakeSessions(users, Revocations(Clock(NOON)))
    return StoresUnderTest(users, users, sessions, answers)


@pytest.fixture(params=["fake", "real"])
def stores(request: pytest.FixtureRequest) -> StoresUnderTest:
    stores: StoresUnderTest = request.getfixturevalue(f"{request.param}_stores")
    return stores
