"""What every limiter does: exact sliding windows, all or nothing."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest_asyncio

from server.domain.limits import Bucket, Limiter, SlidingWindows, Window
from server.store.buckets import RedisBuckets
from server.store.connect import redis_client
from tests.fakes import Clock


def bucket(key: str, limit: int, milliseconds: int) -> Bucket:
    return Bucket("/x/Y", key, Window(limit, timedelta(milliseconds=milliseconds)))


class Forbidden:
    """A limiter that must not be asked."""

    async def take(self, buckets: object) -> None:
        raise AssertionError("Redis was there, and this process was asked")


@pytest_asyncio.fixture
async def buckets(redis_url: str) -> AsyncIterator[RedisBuckets]:
    redis = redis_client(redis_url)
    yield RedisBuckets(redis, Forbidden())
    await redis.aclose()


async def let_through(limiter: Limiter, calls: int, *asked: Bucket) -> int:
    outcomes = await asyncio.gather(*(limiter.take(asked) for _ in range(calls)))
    return outcomes.count(None)


async def holds(limiter: Limiter) -> None:
    assert await let_through(limiter, 20, bucket("a", 5, 60_000)) == 5
    assert await let_through(limiter, 2, bucket("b", 5, 60_000)) == 2
    refusal = await limiter.take([bucket("a", 5, 60_000)])
    assert refusal
    assert timedelta(0) < refusal.retry_after <= timedelta(minutes=1)
    assert refusal.window == Window(5, timedelta(minutes=1))


async def counts_all_or_none(limiter: Limiter) -> None:
    narrow, wide = bucket("n", 1, 60_000), bucket("w", 3, 60_000)
    assert await let_through(limiter, 5, narrow, wide) == 1
    assert await let_through(limiter, 5, wide) == 2


async def test_the_limit_holds(buckets: RedisBuckets) -> None:
    """R5: whatever the concurrency, no more than the limit gets through."""
    await holds(buckets)
    await holds(SlidingWindows(Clock()))


async def test_a_refused_call_counts_nowhere(buckets: RedisBuckets) -> None:
    await counts_all_or_none(buckets)
    await counts_all_or_none(SlidingWindows(Clock()))


async def test_the_window_slides(buckets: RedisBuckets) -> None:
    """Room comes back when the oldest call leaves the window, not all at once."""
    clock = Clock()
    limiter = SlidingWindows(clock)
    for _ in range(2):
        assert await limiter.take([bucket("a", 2, 1000)]) is None
        clock.advance(0.6)
    assert await limiter.take([bucket("a", 2, 1000)]) is None
    assert await limiter.take([bucket("a", 2, 1000)])
    asked = [bucket("a", 2, 150)]
    assert [await buckets.take(asked) for _ in range(2)] == [None, None]
    refusal = await buckets.take(asked)
    while refusal:
        await asyncio.sleep(refusal.retry_after.total_seconds())
        refusal = await buckets.take(asked)


async def test_without_redis_limits_hold_per_process() -> None:
    """R8: looser, not off."""
    redis = redis_client("unix:///nowhere")
    limiter = RedisBuckets(redis, SlidingWindows(Clock()))
    await holds(limiter)
    assert limiter.degraded
    await redis.aclose()


async def test_memory_is_bounded() -> None:
    limiter = SlidingWindows(Clock(), max_buckets=10)
    for number in range(100):
        await limiter.take([bucket(str(number), 5, 1000)])
    assert len(limiter._times) == 10
