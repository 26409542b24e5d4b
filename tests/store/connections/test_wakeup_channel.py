"""Wake-up messages: merged, sent in the background, and dispensable."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from server.store.connections.guarded_redis import redis_client
from server.store.connections.wakeup_channel import WakeupChannel

PUBLICATIONS = 100


@asynccontextmanager
async def subscribed(channel: WakeupChannel) -> AsyncIterator[None]:
    listening = asyncio.ensure_future(channel.listen())
    async with asyncio.timeout(10):
        while not channel.is_subscribed:  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.005)
    yield
    listening.cancel()
    await asyncio.wait([listening])


async def test_publications_at_the_same_time_are_merged(redis_url: str) -> None:
    """Also those that are asked for while one is sent; no caller waits."""
    redis = redis_client(redis_url)
    sent: list[object] = []
    publish = redis.publish

    async def counting(channel: str, message: bytes) -> None:
        sent.append(message)
        await publish(channel, message)

    redis.publish = counting  # type: ignore[method-assign, assignment]
    ours, theirs = WakeupChannel(redis, "merged"), WakeupChannel(redis, "merged")
    async with subscribed(ours), subscribed(theirs), asyncio.timeout(10):
        for _ in range(PUBLICATIONS):
            ours.publish()
            await asyncio.sleep(0)
        await ours.wake.wait()
        await theirs.wake.wait()
    assert 1 <= len(sent) < PUBLICATIONS / 2
    await redis.aclose()


async def test_this_process_is_woken_without_redis() -> None:
    redis: Redis = redis_client("unix:///nowhere")
    channel = WakeupChannel(redis, "away")
    channel.publish()
    async with asyncio.timeout(10):
        await channel.wake.wait()
    await redis.aclose()


async def test_this_process_is_woken_without_a_subscription(redis_url: str) -> None:
    redis = redis_client(redis_url)
    channel = WakeupChannel(redis, "unsubscribed")
    channel.publish()
    async with asyncio.timeout(10):
        await channel.wake.wait()
    await redis.aclose()
