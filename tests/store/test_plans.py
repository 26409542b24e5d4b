"""The statements of each RPC and each job read indexes of large tables."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine

from server.store.connections.connect import Database
from server.store.redis.redis_client import redis_client
from tests.conftest import Servers, fresh_database, key_space
from tests.store.filling import fill
from tests.store.plan_cases import CASES, FilledDatabase
from tests.store.plans import captured, capturing_connections, indexes_of, plan_of


@pytest_asyncio.fixture(scope="module")
async def filled(
    servers: Servers, admin: AsyncEngine, template: str
) -> AsyncIterator[FilledDatabase]:
    with capturing_connections():
        async with fresh_database(servers, admin, template) as url:
            database = Database(url)
            await fill(database)
            redis = redis_client(key_space(servers, 6))
            filled = FilledDatabase(database, redis)
            await filled.feed.refresh()  # the first reads all that are in force
            yield filled
            await redis.aclose()
            await database.close()


@pytest.mark.parametrize("name", CASES)
async def test_statements_use_their_indexes(filled: FilledDatabase, name: str) -> None:
    """At 20,000 members no statement searches a large table from end to end."""
    use, expected = CASES[name]
    with captured() as statements:
        await use(filled)
    plans = [(s.text, await plan_of(filled.database, s)) for s in statements]
    scans = {text: plan.scanned for text, plan in plans if plan and plan.scanned}
    assert not scans
    assert expected <= indexes_of([plan for _, plan in plans if plan])
