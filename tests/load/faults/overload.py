"""L20, L21 and L23: more calls than the service can answer, and retries of them."""

import asyncio
import signal
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2
from tests.load.faults.experiment import at_least, at_most, experiment, percentile
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import NONE, SHIPPED, open_channel
from tests.load.faults.replicas import seconds_until, testbed
from tests.load.faults.traffic import (
    Client,
    Member,
    Result,
    calling,
    list_posts,
    sign_up_members,
)
from tests.load.row import ResultRow
from tests.running import PASSWORD

OVERLOAD = 3
MEASURE_SECONDS = 4.0
OVERLOAD_SECONDS = 8.0
DEADLINE_SECONDS = 1.0
MEMBERS = 100
LOG_IN_CALLERS = 50
RETRYING_CALLERS = 50
Call = Callable[[Client, Member], Coroutine[Any, Any, None]]


async def log_in(client: Client, member: Member) -> None:
    """Open a session."""
    request = auth_pb2.LoginRequest(identifier=member.username, password=PASSWORD)
    await client.call(client.auth.Login, request)


async def list_users(client: Client, member: Member) -> None:
    """Read a page of a hundred users."""
    request = user_pb2.ListUsersRequest(page_size=100)
    await client.call(client.users.ListUsers, request, member.metadata)


@experiment("L20", max_seconds=240)
async def overload() -> list[ResultRow]:
    """Call three times as often as the service can answer; then count again."""
    rows = []
    async with testbed() as bed:
        replica = await bed.started()
        async with open_channel([replica.grpc], NONE) as channel:
            client = Client(channel)
            members = await sign_up_members(client, Ledger(), "m", MEMBERS)
            rows += await _overload_rows("log-ins", client, members, log_in, 4)
            rows += await _overload_rows("lists", client, members, list_users, 16)
    return rows


async def _overload_rows(
    name: str, client: Client, members: Sequence[Member], call: Call, callers: int
) -> list[ResultRow]:
    client.timeout = 10.0
    usual = await _closed_loop(client, members[:callers], call)
    capacity = sum(r.ok for r in usual) / MEASURE_SECONDS
    client.timeout = DEADLINE_SECONDS
    results = await _open_loop(client, members, call, OVERLOAD * capacity)
    ended_at = time.monotonic()
    client.timeout = 10.0
    usual_seconds = statistics.median(r.seconds for r in usual)

    async def is_usual() -> bool:
        await call(client, members[0])
        return client.results[-1].ok and (
            client.results[-1].seconds < 2 * usual_seconds
        )

    await seconds_until(is_usual, 60)
    recovery = time.monotonic() - ended_at
    goodput = 100 * sum(r.ok for r in results) / OVERLOAD_SECONDS / capacity
    refused = [r for r in results if not r.ok] or usual[:1]
    codes = ", ".join(sorted({r.code.name for r in results}))
    offered = f"{capacity:.0f}/s alone, {len(results) / OVERLOAD_SECONDS:.0f}/s offered"
    refusal = percentile([r.seconds for r in refused], 99) * 1e3
    notes = f"of {len(refused):,}; {codes}"
    return [
        at_least(f"{OVERLOAD}x {name}: goodput", goodput, 90, "%", offered),
        at_most(f"{OVERLOAD}x {name}: p99 of a refusal", refusal, 100, "ms", notes),
        at_most(f"{OVERLOAD}x {name}: recovery", recovery, 5, "s"),
    ]


async def _closed_loop(
    client: Client, members: Sequence[Member], call: Call
) -> list[Result]:
    """Let each member call in a loop for MEASURE_SECONDS."""
    client.results.clear()
    end = time.monotonic() + MEASURE_SECONDS

    async def caller(member: Member) -> None:
        while time.monotonic() < end:
            await call(client, member)

    await asyncio.gather(*(caller(member) for member in members))
    return client.results.copy()


async def _open_loop(
    client: Client, members: Sequence[Member], call: Call, rate: float
) -> list[Result]:
    """Begin `rate` calls per second for OVERLOAD_SECONDS, answered or not."""
    client.results.clear()
    started, tasks = time.monotonic(), list[asyncio.Task[None]]()
    while (elapsed := time.monotonic() - started) < OVERLOAD_SECONDS:
        for number in range(len(tasks), int(elapsed * rate)):
            member = members[number % len(members)]
            tasks.append(asyncio.create_task(call(client, member)))
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    return client.results.copy()


@experiment("L21", max_seconds=120)
async def retries_are_limited() -> list[ResultRow]:
    """Call with the shipped policy while Postgres is away."""
    async with testbed() as bed:
        replica = await bed.started()
        async with open_channel([replica.grpc], SHIPPED) as channel:
            client = Client(channel)
            members = await sign_up_members(client, Ledger(), "m", RETRYING_CALLERS)
            client.results.clear()
            attempts_before = _attempts(replica.calls())
            bed.stores.signal_postgres(signal.SIGKILL)
            async with calling(client, Ledger(), members, {list_posts: 1}, 0.01):
                await asyncio.sleep(10)
            attempts = _attempts(replica.calls()) - attempts_before
    failed = sum(not result.ok for result in client.results)
    notes = f"{attempts:,} attempts of {len(client.results):,} calls, {failed:,} failed"
    ratio = attempts / len(client.results)
    return [
        at_most(
            "Postgres away, shipped policy: attempts per call", ratio, 1.2, "", notes
        )
    ]


def _attempts(lines: Sequence[dict[str, Any]]) -> int:
    return sum(str(line["method"]).endswith("ListPosts") for line in lines)


@experiment("L23", max_seconds=120)
async def health_beside_log_ins() -> list[ResultRow]:
    """Probe health while fifty callers log in as often as they can."""
    async with testbed() as bed:
        replica = await bed.started()
        async with (
            open_channel([replica.grpc], NONE) as channel,
            open_channel([replica.grpc], NONE) as probing,
        ):
            client = Client(channel)
            members = await sign_up_members(client, Ledger(), "m", LOG_IN_CALLERS)
            flood = asyncio.create_task(_closed_loop(client, members, log_in))
            delays = await _probes(probing, flood)
            results = await flood
    name = f"health beside {LOG_IN_CALLERS} callers that log in: p99"
    answered = f"{sum(r.ok for r in results)} log-ins"
    notes = f"{answered}; p50 {statistics.median(delays) * 1e3:.1f} ms of {len(delays)}"
    return [at_most(name, percentile(delays, 99) * 1e3, 50, "ms", notes)]


async def _probes(
    channel: grpc.aio.Channel, until: "asyncio.Task[list[Result]]"
) -> list[float]:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    delays = []
    while not until.done():
        started = time.monotonic()
        await stub.Check(health_pb2.HealthCheckRequest())
        delays.append(time.monotonic() - started)
        await asyncio.sleep(0.01)
    return delays
