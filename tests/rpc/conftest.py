"""Fixtures: the whole service with a gRPC listener on a free port."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.running import RunningService, running


@pytest_asyncio.fixture
async def service(database_url: str, redis_url: str) -> AsyncIterator[RunningService]:
    """Return a service without rate limits on sign-up and log-in."""
    async with running(database_url, redis_url) as started:
        yield started


@pytest_asyncio.fixture
async def limited(database_url: str, redis_url: str) -> AsyncIterator[RunningService]:
    """Return a service with the contract's rate limits."""
    async with running(database_url, redis_url, rate_limits={}) as started:
        yield started
