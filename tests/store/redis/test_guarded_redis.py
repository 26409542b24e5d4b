"""Redis that is lost, silent, slow, flushed or full: no call waits for it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from redis.exceptions import RedisError

from server.domain.limits import Bucket, SlidingWindows, Window
from server.store.buckets import RedisBuckets
from server.store.connections.wakeup_channel import WakeupChannel
from server.store.redis.guarded_redis import (
    SLOW_SECONDS,
    GuardedRedis,
    RedisUnavailable,
)
from server.store.redis.redis_client import RedisClient, redis_client
from tests.fakes import Clock
from tests.redis_proxy import RedisProxy, redis_proxy

COMMANDS = 2_000
CONCURRENCY = 20
CALLS = 200
SECONDS = 10


@pytest_asyncio.fixture
async def proxy(redis_server_url: str) -> AsyncIterator[RedisProxy]:
    async with redis_proxy(redis_server_url) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def redis(proxy: RedisProxy) -> AsyncIterator[GuardedRedis]:
    client = redis_client(proxy.url)
    assert isinstance(client, GuardedRedis)
    yield client
    await client.aclose()


@pytest_asyncio.fixture
async def direct(redis_server_url: str) -> AsyncIterator[GuardedRedis]:
    client = redis_client(redis_server_url)
    assert isinstance(client, GuardedRedis)
    yield client
    await client.aclose()


async def until_degraded(redis: RedisClient, expected: bool) -> None:
    async with asyncio.timeout(SECONDS):
        while redis.is_degraded is not expected:  # noqa: ASYNC110 - background task
            await asyncio.sleep(0.01)


def bucket(key: str) -> Sequence[Bucket]:
    return [Bucket("/x/Y", key, Window(5, timedelta(minutes=1)))]


async def test_silent_redis_is_skipped_until_it_answers(
    proxy: RedisProxy, redis: GuardedRedis
) -> None:
    """L7: few calls wait for it, limits hold meanwhile, and it is used again."""
    limiter = RedisBuckets(redis, SlidingWindows(Clock()))
    assert await limiter.take(bucket("a")) is None
    proxy.silent = True
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    outcomes = [await limiter.take(bucket("b")) for _ in range(CALLS)]
    assert loop.time() - started_at < 2  # one call waits; 200 would for 20 s
    assert outcomes.count(None) == 5
    assert limiter.is_degraded
    with pytest.raises(RedisUnavailable):
        await redis.get("a")
    proxy.silent = False
    await until_degraded(redis, False)
    assert await redis.ping()


async def test_slow_redis_is_skipped(proxy: RedisProxy, redis: GuardedRedis) -> None:
    await redis.ping()
    proxy.delay = 0.07
    for _ in range(3):
        await redis.ping()
    await until_degraded(redis, True)
    proxy.delay = 0
    await until_degraded(redis, False)


async def test_late_event_loop_is_not_a_slow_redis(redis: GuardedRedis) -> None:
    """The replies are there in time, but are read late, time after time."""
    await redis.ping()
    probing = asyncio.ensure_future(redis.probe())
    while not probing.done():
        await asyncio.sleep(0)
        time.sleep(1.2 * SLOW_SECONDS)  # noqa: ASYNC251
    await probing


async def test_subscription_begins_while_the_event_loop_is_busy(
    redis: GuardedRedis,
) -> None:
    """As at the start of a process. Nothing waits for a subscription."""
    channel = WakeupChannel(redis, "busy")
    listening = asyncio.ensure_future(channel.listen())
    for _ in range(10):
        await asyncio.sleep(0)
        time.sleep(3 * SLOW_SECONDS)  # noqa: ASYNC251
    async with asyncio.timeout(SECONDS):
        while not await redis.publish("busy", b""):
            assert not listening.done()
    await channel.wake.wait()
    listening.cancel()


async def test_flushed_redis_is_used(proxy: RedisProxy, redis: GuardedRedis) -> None:
    """Its scripts are gone, too."""
    limiter = RedisBuckets(redis, SlidingWindows(Clock()))
    assert await limiter.take(bucket("a")) is None
    await redis.flushdb()
    await redis.script_flush()
    assert await limiter.take(bucket("a")) is None
    assert not redis.is_degraded


@pytest.mark.parametrize(
    ("fault", "repair"),
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    ],
)
async def test_redis_that_refuses_writes_is_skipped(
    redis_server_url: str, redis: GuardedRedis, fault: str, repair: str
) -> None:
    """It is full, or a replica: it answers reads, but counts nothing."""
    limiter = RedisBuckets(redis, SlidingWindows(Clock()))
    administrator = redis_client(redis_server_url)
    await administrator.execute_command(*fault.split())
    try:
        outcomes = [await limiter.take(bucket("a")) for _ in range(20)]
        assert outcomes.count(None) == 5
        await until_degraded(redis, True)
    finally:
        await administrator.execute_command(*repair.split())
        await administrator.aclose()
    await until_degraded(redis, False)


async def test_refused_command_is_no_outage(redis: GuardedRedis) -> None:
    await redis.set("text", "a")
    with pytest.raises(RedisError):
        await redis.incr("text")
    assert not redis.is_degraded


async def test_wrong_password_is_an_outage(proxy: RedisProxy) -> None:
    client = redis_client(proxy.url.replace("redis://", "redis://ana:wrong@"))
    with pytest.raises(RedisError):
        await client.ping()
    await until_degraded(client, True)
    await client.aclose()


async def test_cancelled_commands_mix_no_replies_and_leak_no_connection(
    direct: GuardedRedis,
) -> None:
    """L11: each caller gets its own reply, whenever the others are cancelled."""
    numbers = random.Random(1)

    async def call(number: int) -> Any:
        task: asyncio.Task[Any] = asyncio.create_task(
            direct.execute_command("ECHO", str(number))
        )
        if number % 2:
            await asyncio.sleep(numbers.uniform(0, 0.002))
            task.cancel()
        outcomes: Any = await asyncio.gather(task, return_exceptions=True)
        return outcomes[0]

    replies = 0
    for start in range(0, COMMANDS, CONCURRENCY):
        batch = range(start, start + CONCURRENCY)
        for number, reply in zip(
            batch, await asyncio.gather(*map(call, batch)), strict=True
        ):
            # a busy event loop may miss the timeout
            if not isinstance(reply, asyncio.CancelledError | RedisError | OSError):
                replies += 1
                assert reply == str(number).encode()
    assert replies > COMMANDS / 4
    pool = direct.connection_pool
    assert not pool._in_use_connections
    assert len(pool._available_connections) <= CONCURRENCY + 1  # a probe
