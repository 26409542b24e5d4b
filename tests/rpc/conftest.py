"""A real listener on a port of its own, with the full chain."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.running import Running, running


@pytest_asyncio.fixture
async def service(database_url: str, redis_url: str) -> AsyncIterator[Running]:
    """Give the service, without rate limits on signing up and in."""
    async with running(database_url, redis_url) as started:
        yield started


@pytest_asyncio.fixture
async def limited(database_url: str, redis_url: str) -> AsyncIterator[Running]:
    """Give the service with the contract's own limits."""
    async with running(database_url, redis_url, rate_limits={}) as started:
        yield started
