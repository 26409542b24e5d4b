"""The primary that Sentinels name: it may change, and a Sentinel may be silent."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta

from server.domain.limits import Bucket, SlidingWindows, Window
from server.store.buckets import RedisBuckets
from server.store.connections.wakeup_channel import WakeupChannel
from server.store.redis.redis_client import redis_client
from server.workers.supervisor import Subscription, supervise
from tests.fakes import Clock
from tests.valkey_nodes import HOST, SERVICE, ValkeyReplication, valkey_replication

SECONDS = 10
MAX_CALL_SECONDS = 0.3
RECOVERY_SECONDS = 5
COUNTED = [Bucket("/x/Y", "a", Window(100_000, timedelta(hours=1)))]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110 - background task
            await asyncio.sleep(0.01)


async def test_silent_sentinel_delays_nobody(replication: ValkeyReplication) -> None:
    async def keep_silent(
        _: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await closing.wait()
        writer.close()

    closing = asyncio.Event()
    silent = await asyncio.start_server(keep_silent, HOST, 0)
    port = silent.sockets[0].getsockname()[1]
    address = replication.sentinel.address
    redis = redis_client(f"redis+sentinel://{HOST}:{port},{address}/{SERVICE}")
    assert await redis.ping()
    outcomes = await redis.ping_nodes()
    failing = [name for name, error in outcomes.items() if error]
    assert failing == [f"Sentinel {HOST}:{port}"]
    await redis.aclose()
    closing.set()
    silent.close()


async def test_failover_is_followed() -> None:
    """L7: the primary is killed; its replica takes over, and wake-ups arrive again."""
    with valkey_replication() as replication:
        redis = redis_client(replication.url)
        limiter = RedisBuckets(redis, SlidingWindows(Clock()))
        channel = WakeupChannel(redis, "failover")
        async with supervise(Subscription("failover", channel.listen)):
            await limiter.take(COUNTED)
            killed_at = time.monotonic()
            replication.primary.process.kill()
            slowest = 0.0
            while time.monotonic() - killed_at < SECONDS:
                started_at = time.monotonic()
                assert await limiter.take(COUNTED) is None
                slowest = max(slowest, time.monotonic() - started_at)
                await asyncio.sleep(0.01)
                if limiter.is_degraded:
                    break
            await until(lambda: not limiter.is_degraded)
            assert time.monotonic() - killed_at < RECOVERY_SECONDS
            assert slowest < MAX_CALL_SECONDS
            assert await redis.set("key", "x")
            assert replication.replica.client.get("key") == "x"
            async with asyncio.timeout(RECOVERY_SECONDS):
                channel.wake.clear()
                while not channel.wake.is_set():
                    await redis.publish("failover", b"")
                    await asyncio.sleep(0.01)
        await redis.aclose()
