"""Commands of concurrent calls in one pipeline: each caller gets its own reply."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from server.store.redis.pipelining_redis import PipeliningRedis
from tests.redis_proxy import RedisProxy, redis_proxy


@pytest_asyncio.fixture
async def redis(redis_server_url: str) -> AsyncIterator[PipeliningRedis]:
    client = PipeliningRedis.from_url(redis_server_url)
    assert isinstance(client, PipeliningRedis)
    yield client
    await client.aclose()


@pytest.fixture
def sent(redis: PipeliningRedis, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of commands that were sent together, filled later."""
    numbers: list[int] = []
    execute = redis._execute

    async def record(commands: list[Any]) -> None:
        numbers.append(len(commands))
        await execute(commands)

    monkeypatch.setattr(redis, "_execute", record)
    return numbers


async def test_concurrent_commands_are_sent_together(
    redis: PipeliningRedis, sent: list[int]
) -> None:
    keys = [f"key{number}" for number in range(50)]
    await asyncio.gather(*(redis.set(key, key) for key in keys))
    values = await asyncio.gather(*(redis.get(key) for key in keys))
    assert values == [key.encode() for key in keys]
    assert sent == [50, 50]


async def test_refused_command_does_not_fail_the_others(
    redis: PipeliningRedis,
) -> None:
    await redis.set("text", "x")
    replies = await asyncio.gather(
        redis.get("text"),
        redis.incr("text"),
        redis.incr("number"),
        return_exceptions=True,
    )
    assert replies[0] == b"x"
    assert isinstance(replies[1], ResponseError)
    assert replies[2] == 1


async def test_script_unknown_to_the_server_is_loaded(redis: PipeliningRedis) -> None:
    await redis.script_flush()
    script = redis.register_script("return {KEYS[1], ARGV[1]}")
    replies = await asyncio.gather(
        *(script(keys=[f"k{number}"], args=[number]) for number in range(10))
    )
    assert replies == [[b"k%d" % n, b"%d" % n] for n in range(10)]


async def test_cancelled_caller_takes_nothing_from_the_others(
    redis: PipeliningRedis,
) -> None:
    await asyncio.gather(*(redis.set(f"key{n}", n) for n in range(20)))
    callers = [asyncio.ensure_future(redis.get(f"key{n}")) for n in range(20)]
    await asyncio.sleep(0)
    for caller in callers[::2]:
        caller.cancel()
    replies = await asyncio.gather(*callers, return_exceptions=True)
    assert replies[1::2] == [b"%d" % n for n in range(1, 20, 2)]
    assert await redis.get("key3") == b"3"


async def test_lost_connection_fails_every_command_of_its_pipeline(
    redis_server_url: str,
) -> None:
    """And no later one."""
    async with redis_proxy(redis_server_url) as proxy:
        client = PipeliningRedis.from_url(
            proxy.url, socket_timeout=0.1, socket_connect_timeout=0.1
        )
        try:
            await check_recovery(client, proxy)
        finally:
            await client.aclose()


async def check_recovery(client: Redis, proxy: RedisProxy) -> None:
    await client.ping()
    proxy.silent = True
    commands = [client.get(f"key{number}") for number in range(10)]
    replies = await asyncio.gather(*commands, return_exceptions=True)
    assert all(isinstance(reply, RedisError | OSError) for reply in replies)
    proxy.silent = False
    assert await client.set("key", "x")
    assert await client.get("key") == b"x"
