"""A cluster whose slots move and whose nodes fail: no call fails or waits."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import pytest
import pytest_asyncio
from redis.crc import key_slot
from redis.exceptions import RedisError

from server.domain.limits import Bucket, SlidingWindows, Window
from server.store.buckets import RedisBuckets
from server.store.connections.wakeup_channel import WakeupChannel
from server.store.redis.guarded_redis import RedisUnavailable
from server.store.redis.redis_client import redis_client
from server.store.redis.redis_cluster import GuardedCluster
from server.workers.supervisor import Subscription, supervise
from tests.fakes import Clock
from tests.valkey_nodes import (
    HOST,
    ValkeyCluster,
    ValkeyNode,
    ValkeyReplication,
    await_state,
    valkey_cluster,
)

SECONDS = 10
# one timeout for a new connection, and one for its reply; and the lateness of a test
MAX_CALL_SECONDS = 0.3
RECOVERY_SECONDS = 5
KEYS = [f"user:{{{number}}}:x" for number in range(60)]


@pytest_asyncio.fixture
async def redis(cluster_url: str) -> AsyncIterator[GuardedCluster]:
    client = client_of(cluster_url)
    await client.ping()
    yield client
    await client.aclose()


def client_of(url: str) -> GuardedCluster:
    client = redis_client(url)
    assert isinstance(client, GuardedCluster)
    return client


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110 - background task
            await asyncio.sleep(0.01)


def bucket(scope: int) -> Sequence[Bucket]:
    return [Bucket(f"/x/{scope}", "a", Window(100_000, timedelta(hours=1)))]


async def slowest_call(limiter: RedisBuckets) -> float:
    """Count calls whose keys are on all nodes; return the seconds of the slowest."""

    async def take(scope: int) -> float:
        started_at = time.monotonic()
        assert await limiter.take(bucket(scope)) is None
        return time.monotonic() - started_at

    return max(await asyncio.gather(*map(take, range(30))))


async def test_each_key_is_on_its_node(
    redis: GuardedCluster, cluster: ValkeyCluster
) -> None:
    await asyncio.gather(*(redis.set(key, key) for key in KEYS))
    values = await asyncio.gather(*(redis.get(key) for key in KEYS))
    assert values == [key.encode() for key in KEYS]
    stored = [set(node.client.keys("user:*")) for node in cluster.primaries]
    assert all(stored)
    assert set.union(*stored) == set(KEYS)


async def test_commands_for_one_node_are_sent_together(
    redis: GuardedCluster, cluster: ValkeyCluster
) -> None:
    before = [len(node.client.client_list()) for node in cluster.primaries]
    await asyncio.gather(*(redis.set(key, key) for key in KEYS))
    after = [len(node.client.client_list()) for node in cluster.primaries]
    assert all(new <= old + 1 for old, new in zip(before, after, strict=True))


async def test_script_unknown_to_a_node_is_loaded(
    redis: GuardedCluster, cluster: ValkeyCluster
) -> None:
    for node in cluster.primaries:
        node.client.script_flush()
    script = redis.register_script("return {KEYS[1], ARGV[1]}")
    replies = await asyncio.gather(*(script(keys=[key], args=[key]) for key in KEYS))
    assert replies == [[key.encode()] * 2 for key in KEYS]


async def test_pipeline_of_several_nodes_is_refused(redis: GuardedCluster) -> None:
    """It would send every command to one node."""
    with pytest.raises(NotImplementedError):
        redis.pipeline()


@contextmanager
def migrating(slot: int, source: ValkeyNode, target: ValkeyNode) -> Iterator[None]:
    """Begin to move a slot; move its keys, and the slot, when the block ends."""
    target.command("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
    source.command("CLUSTER SETSLOT", slot, "MIGRATING", target.id)
    yield
    keys = source.command("CLUSTER GETKEYSINSLOT", slot, 1000)
    if keys:
        source.command(
            *("MIGRATE", HOST, target.port, "", 0, 1000, "REPLACE", "KEYS", *keys)
        )
    for node in (target, source):
        node.command("CLUSTER SETSLOT", slot, "NODE", target.id)


async def test_moved_slot_is_followed(
    redis: GuardedCluster, cluster: ValkeyCluster
) -> None:
    """While its keys are on the way, too; each command is answered."""
    slot = key_slot(b"{moved}")
    source = cluster.primary_of(slot)
    target = next(node for node in cluster.primaries if node is not source)
    script = redis.register_script("return redis.call('INCR', KEYS[1])")
    await redis.set("{moved}:old", "x")
    with migrating(slot, source, target):
        assert await redis.get("{moved}:old") == b"x"
        assert await redis.set("{moved}:new", "y")  # the reply of the source is ASK
        assert await script(keys=["{moved}:count"]) == 1
    try:
        values = [redis.get(f"{{moved}}:{name}") for name in ("old", "new", "count")]
        assert await asyncio.gather(*values) == [b"x", b"y", b"1"]
        assert target.client.get("{moved}:new") == "y"
        moved = source.client.info("errorstats")
        await asyncio.gather(*(redis.get("{moved}:old") for _ in range(10)))
        assert source.client.info("errorstats") == moved  # it is not asked again
        assert not redis.is_degraded
    finally:
        with migrating(slot, target, source):
            pass
    assert await redis.get("{moved}:old") == b"x"


async def test_silent_node_delays_only_its_own_keys(
    redis: GuardedCluster, cluster: ValkeyCluster
) -> None:
    """Until the cluster notices: then no node answers without this one's slots."""
    silent, other = cluster.primaries[:2]
    key = next(key for key in KEYS if cluster.primary_of(slot_of(key)) is silent)
    other_key = next(key for key in KEYS if cluster.primary_of(slot_of(key)) is other)
    await asyncio.gather(redis.set(key, "x"), redis.set(other_key, "y"))
    limiter = RedisBuckets(redis, SlidingWindows(Clock()))
    silent.send_signal(signal.SIGSTOP)
    try:
        reading = asyncio.ensure_future(redis.get(key))
        assert await redis.get(other_key) == b"y"
        assert not reading.done()
        with pytest.raises((RedisError, OSError)):
            await reading
        await until(lambda: redis.is_degraded)
        with pytest.raises(RedisUnavailable):
            await redis.get(key)
        assert await slowest_call(limiter) < MAX_CALL_SECONDS
    finally:
        silent.send_signal(signal.SIGCONT)
    await until(lambda: not redis.is_degraded)
    assert await redis.get(key) == b"x"
    for node in cluster.primaries:
        await_state(node, cluster_state="ok")


def slot_of(key: str) -> int:
    return key_slot(key.encode())


def is_primary(node: ValkeyNode) -> bool:
    return bool(node.client.info("replication")["role"] == "master")


async def test_failover_is_followed() -> None:
    """L7: a primary is killed; its replica takes over, and wake-ups arrive again."""
    with valkey_cluster(replicas=1) as cluster:
        redis = client_of(cluster.url)
        limiter = RedisBuckets(redis, SlidingWindows(Clock()))
        channel = WakeupChannel(redis, "failover")
        async with supervise(Subscription("failover", channel.listen)):
            await slowest_call(limiter)
            killed_at = time.monotonic()
            cluster.primaries[0].process.kill()
            slowest = await slowest_call(limiter)
            while redis.is_degraded or not is_primary(cluster.replicas[0]):
                slowest = max(slowest, await slowest_call(limiter))
                await asyncio.sleep(0.01)
            assert time.monotonic() - killed_at < RECOVERY_SECONDS
            assert slowest < MAX_CALL_SECONDS
            await slowest_call(limiter)
            assert cluster.replicas[0].client.keys("rate:{/x/*")
            async with asyncio.timeout(RECOVERY_SECONDS):
                channel.wake.clear()
                while not channel.wake.is_set():
                    await redis.publish("failover", b"")
                    await asyncio.sleep(0.01)
        await redis.aclose()


async def test_cluster_that_is_away_is_skipped() -> None:
    """From the start: few calls wait for it, limits hold meanwhile."""
    redis = client_of("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    limiter = RedisBuckets(redis, SlidingWindows(Clock()))
    started_at = time.monotonic()
    outcomes = [
        await limiter.take([Bucket("/x/Y", "a", Window(5, timedelta(minutes=1)))])
        for _ in range(100)
    ]
    assert time.monotonic() - started_at < 1
    assert outcomes.count(None) == 5
    await until(lambda: redis.is_degraded)
    await redis.aclose()


async def test_server_without_cluster_support_is_an_outage(
    replication: ValkeyReplication,
) -> None:
    address = replication.primary.address
    redis = client_of(f"redis+cluster://{address}")
    with pytest.raises((RedisError, OSError)):
        await redis.get("key")
    await until(lambda: redis.is_degraded)
    (error,) = (await redis.ping_nodes()).values()
    assert "cluster support disabled" in str(error)
    await redis.aclose()
