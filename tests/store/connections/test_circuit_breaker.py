"""The circuit breaker: open after a failure, until a probe succeeds."""

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from server.store.connections.circuit_breaker import CircuitBreaker

INTERVAL_SECONDS = 0.001


class Store:
    """A store that can be unavailable, and counts the probes."""

    def __init__(self) -> None:
        self.available = False
        self.probes = 0

    async def probe(self) -> None:
        self.probes += 1
        if not self.available:
            raise OSError("unavailable")


@pytest_asyncio.fixture
async def store() -> Store:
    return Store()


@pytest_asyncio.fixture
async def breaker(store: Store) -> AsyncIterator[CircuitBreaker]:
    breaker = CircuitBreaker("store", store.probe, INTERVAL_SECONDS)
    yield breaker
    await breaker.close()


async def wait_until_closed(breaker: CircuitBreaker) -> None:
    async with asyncio.timeout(5):
        while breaker.is_open:  # noqa: ASYNC110
            await asyncio.sleep(INTERVAL_SECONDS)


async def test_breaker_closes_when_a_probe_succeeds(
    store: Store, breaker: CircuitBreaker
) -> None:
    assert not breaker.is_open
    breaker.record_failure(OSError())
    while store.probes < 3:
        assert breaker.is_open
        await asyncio.sleep(INTERVAL_SECONDS)
    assert str(breaker.cause) == "unavailable"
    store.available = True
    await wait_until_closed(breaker)
    assert breaker.cause is None


async def test_breaker_probes_once_at_a_time(
    store: Store, breaker: CircuitBreaker
) -> None:
    """However many callers report the same failure; and again after a recovery."""
    store.available = True
    for number in (1, 2):
        for _ in range(10):
            breaker.record_failure(OSError())
        await wait_until_closed(breaker)
        assert store.probes == number
