"""L17: how long another replica answers with the state before a change."""

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable

import grpc
from redis.asyncio import Redis

from blatam.user.v1 import user_pb2
from tests.fault_proxy import fault_proxy, proxied_database_url, to_postgres
from tests.load.faults.experiment import at_most, experiment, percentile
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import NONE, open_channel
from tests.load.faults.replicas import testbed
from tests.load.faults.traffic import Client, Member, rename, sign_up_members
from tests.load.row import ResultRow

UPDATES = 150
DELETIONS = 30
RACES = 60
LATENCY_SECONDS = 0.03
SETTLE_SECONDS = 0.3


@experiment("L17", max_seconds=240)
async def changes_reach_other_replicas() -> list[ResultRow]:
    """Change accounts at one replica and read them at another."""
    async with testbed() as bed:
        url = bed.stores.database_url
        async with fault_proxy(to_postgres(url)) as proxy:
            first = await bed.started()
            slow = {"DATABASE_URL": proxied_database_url(url, proxy)}
            second = await bed.started(slow)
            async with (
                open_channel([first.grpc], NONE) as to_first,
                open_channel([second.grpc], NONE) as to_second,
            ):
                writer, reader = Client(to_first), Client(to_second)
                members = await sign_up_members(writer, Ledger(), "m", DELETIONS + 1)
                viewer = members.pop()
                delays = [
                    await _update_delay(writer, reader, random.choice(members))
                    for _ in range(UPDATES)
                ]
                delays += [
                    await _delete_delay(writer, reader, viewer, m) for m in members
                ]
                racing = await sign_up_members(writer, Ledger(), "r", RACES)
                proxy.latency = LATENCY_SECONDS
                async with Redis.from_url(bed.stores.redis_url) as redis:
                    stuck = [await _race(writer, reader, redis, m) for m in racing]
    notes = (
        f"p50 {statistics.median(delays) * 1e3:.0f}, max {max(delays) * 1e3:.0f} ms "
        f"of {UPDATES} updates, {DELETIONS} deletions"
    )
    p99 = percentile(delays, 99) * 1e3
    return [
        at_most("stale at another replica: p99", p99, 100, "ms", notes),
        at_most(f"slow reader x{RACES}: stale for good", sum(stuck), 0, "accounts"),
    ]


async def _name(client: Client, viewer: Member, user_id: int) -> str:
    """Return the account's username at a replica, "" if it is not found."""
    request = user_pb2.GetUserRequest(id=user_id)
    try:
        response = await client.users.GetUser(request, metadata=viewer.metadata)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return ""
        raise
    return str(response.user.username)


async def _update_delay(writer: Client, reader: Client, member: Member) -> float:
    await _name(reader, member, member.id)
    await rename(writer, Ledger(), member)
    return await _delay(reader, member, member.id, member.username)


async def _delete_delay(
    writer: Client, reader: Client, viewer: Member, member: Member
) -> float:
    await _name(reader, viewer, member.id)
    request = user_pb2.DeleteUserRequest(id=member.id)
    await writer.users.DeleteUser(request, metadata=member.metadata)
    return await _delay(reader, viewer, member.id, "")


async def _delay(client: Client, viewer: Member, user_id: int, name: str) -> float:
    """Return the seconds until the replica answers with this username."""
    started = time.monotonic()
    while await _name(client, viewer, user_id) != name:
        assert time.monotonic() - started < 10
    return time.monotonic() - started


async def _race(writer: Client, reader: Client, redis: "Redis", member: Member) -> bool:
    """Update an account while it is read slowly; return whether it stays stale."""
    flushed: Awaitable[object] = redis.flushall()
    await flushed
    reading = asyncio.create_task(_name(reader, member, member.id))
    await asyncio.sleep(random.uniform(0, 4 * LATENCY_SECONDS))
    await rename(writer, Ledger(), member)
    await reading
    await asyncio.sleep(SETTLE_SECONDS)
    names = {await _name(client, member, member.id) for client in (writer, reader)}
    return names != {member.username}
