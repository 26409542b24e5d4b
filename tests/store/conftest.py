"""Every store in memory and on real servers, for one suite of tests."""

from collections.abc import AsyncIterator, Iterator
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
from tests.redis_nodes import flush
from tests.valkey_nodes import (
    ValkeyCluster,
    ValkeyReplication,
    valkey_cluster,
    valkey_replication,
)


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


@pytest.fixture(scope="session")
def cluster() -> Iterator[ValkeyCluster]:
    """Return a cluster of three primaries. Tests repair what they break."""
    with valkey_cluster() as started:
        yield started


@pytest.fixture(scope="session")
def replication() -> Iterator[ValkeyReplication]:
    """Return a primary with a Sentinel. Tests leave both as they are."""
    with valkey_replication() as started:
        yield started


@pytest.fixture
def cluster_url(cluster: ValkeyCluster) -> str:
    flush(cluster.url)
    return cluster.url


@pytest.fixture
def sentinel_url(replication: ValkeyReplication) -> str:
    flush(replication.url)
    return replication.url


@pytest.fixture(params=["redis_server_url", "cluster_url", "sentinel_url"])
def each_redis_url(request: pytest.FixtureRequest) -> str:
    """Return the URL of an empty key space: of a server, a cluster and Sentinels."""
    url: str = request.getfixturevalue(request.param)
    return url
