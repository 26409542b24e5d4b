"""The contract of limiters: exact sliding windows, all or nothing."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest_asyncio

from server.domain.limits import Bucket, Limiter, SlidingWindows, Window
from server.store.buckets import RedisBuckets
from server.store.redis.redis_client import redis_client
from tests.fakes import Clock


def bucket(key: str, limit: int, milliseconds: int) -> Bucket:
    return Bucket("/x/Y", key, Window(limit, timedelta(milliseconds=milliseconds)))


class Forbidden:
    """A limiter that must not be used."""

    async def take(self, buckets: object) -> None:
        raise AssertionError("Redis is available, but the local limiter was used")


@pytest_asyncio.fixture
async def buckets(each_redis_url: str) -> AsyncIterator[RedisBuckets]:
    redis = redis_client(each_redis_url)
    yield RedisBuckets(redis, Forbidden())
    await redis.aclose()


async def count_passed(limiter: Limiter, calls: int, *buckets: Bucket) -> int:
    outcomes = await asyncio.gather(*(limiter.take(buckets) for _ in range(calls)))
    return outcomes.count(None)


async def check_limit(limiter: Limiter) -> None:
    assert await count_passed(limiter, 20, bucket("a", 5, 60_000)) == 5
    assert await count_passed(limiter, 2, bucket("b", 5, 60_000)) == 2
    refusal = await limiter.take([bucket("a", 5, 60_000)])
    assert refusal
    assert timedelta(0) < refusal.retry_after <= timedelta(minutes=1)
    assert refusal.window == Window(5, timedelta(minutes=1))


async def check_all_or_none(limiter: Limiter) -> None:
    narrow, wide = bucket("n", 1, 60_000), bucket("w", 3, 60_000)
    assert await count_passed(limiter, 5, narrow, wide) == 1
    assert await count_passed(limiter, 5, wide) == 2


async def test_limit_holds_under_concurrency(buckets: RedisBuckets) -> None:
    """R5: whatever the concurrency, at most `limit` calls pass."""
    await check_limit(buckets)
    await check_limit(SlidingWindows(Clock()))


async def test_refused_call_is_not_counted(buckets: RedisBuckets) -> None:
    """A call that one bucket refuses is counted in none."""
    await check_all_or_none(buckets)
    await check_all_or_none(SlidingWindows(Clock()))


async def test_window_slides(buckets: RedisBuckets) -> None:
    """Room returns when the oldest call leaves the window, not all at once."""
    clock = Clock()
    limiter = SlidingWindows(clock)
    for _ in range(2):
        assert await limiter.take([bucket("a", 2, 1000)]) is None
        clock.advance(0.6)
    assert await limiter.take([bucket("a", 2, 1000)]) is None
    assert await limiter.take([bucket("a", 2, 1000)])
    short = [bucket("a", 2, 150)]
    assert [await buckets.take(short) for _ in range(2)] == [None, None]
    refusal = await buckets.take(short)
    while refusal:
        await asyncio.sleep(refusal.retry_after.total_seconds())
        refusal = await buckets.take(short)


async def test_limits_hold_per_process_without_redis() -> None:
    """R8: looser, but not off."""
    redis = redis_client("unix:///nowhere")
    limiter = RedisBuckets(redis, SlidingWindows(Clock()))
    await check_limit(limiter)
    async with asyncio.timeout(5):
        while not limiter.is_degraded:  # noqa: ASYNC110 - background task
            await asyncio.sleep(0.01)
    await redis.aclose()


async def test_local_buckets_are_bounded() -> None:
    """A flood of keys does not fill the memory."""
    limiter = SlidingWindows(Clock(), max_buckets=10)
    for number in range(100):
        await limiter.take([bucket(str(number), 5, 1000)])
    assert len(limiter._times) == 10
