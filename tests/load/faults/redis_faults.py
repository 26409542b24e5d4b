"""L7: Redis that ends, stops, is flushed or answers with errors."""

import asyncio
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence

import grpc
from redis.asyncio import Redis

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2
from tests.load.faults.experiment import at_least, at_most, experiment, percentile
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import NONE, open_channel
from tests.load.faults.replicas import Testbed, testbed
from tests.load.faults.traffic import (
    Client,
    Member,
    Operation,
    Result,
    calling,
    list_posts,
    read_self,
    renew_session,
    sign_up_members,
    write_post,
)
from tests.load.row import ResultRow
from tests.running import NO_LIMITS

CALLERS = 20
FAULT_SECONDS = 5.0
LOGIN = "blatam.auth.v1.AuthService/Login"
LOGIN_LIMIT = 5  # of the contract, per minute for one account from one address
ATTEMPTS = 12  # at each replica
# Counted in Redis, and never reached.
HIGH_LIMITS = {
    **NO_LIMITS,
    LOGIN: [{"by": ["address"], "limit": 100_000, "per": "60s"}],
}
CONTRACT_LIMITS = {name: rules for name, rules in NO_LIMITS.items() if name != LOGIN}
Fault = Callable[[Testbed], Awaitable[object]]


async def kill(bed: Testbed) -> None:
    """End Redis, and start it again after the experiment's seconds."""
    bed.stores.signal_valkey(signal.SIGKILL)
    await asyncio.sleep(FAULT_SECONDS)
    await bed.stores.start_valkey()


async def stop(bed: Testbed) -> None:
    """Stop Redis by SIGSTOP."""
    bed.stores.signal_valkey(signal.SIGSTOP)
    await asyncio.sleep(FAULT_SECONDS)
    bed.stores.signal_valkey(signal.SIGCONT)


async def flush(bed: Testbed) -> None:
    """Delete all that Redis holds, repeatedly."""
    async with Redis.from_url(bed.stores.redis_url) as redis:
        for _ in range(10):
            await redis.flushall()
            await asyncio.sleep(FAULT_SECONDS / 10)


async def refuse_writes(bed: Testbed) -> None:
    """Let Redis answer every write with an error."""
    async with Redis.from_url(bed.stores.redis_url) as redis:
        await redis.config_set("maxmemory", "1")
        await asyncio.sleep(FAULT_SECONDS)
        await redis.config_set("maxmemory", "0")


FAULTS: dict[str, Fault] = {
    "SIGKILL": kill,
    "SIGSTOP": stop,
    "FLUSHALL": flush,
    "errors": refuse_writes,
}


def read_any(members: Sequence[Member]) -> Operation:
    """Return an operation that reads one of these accounts, by the caches."""

    async def run(client: Client, ledger: Ledger, member: Member) -> None:
        del ledger
        request = user_pb2.GetUserRequest(id=random.choice(members).id)
        await client.call(client.users.GetUser, request, member.metadata)

    return run


@experiment("L7", max_seconds=300)
async def redis_fails() -> list[ResultRow]:
    """Let callers call while Redis fails in four ways."""
    ledger, rows = Ledger(), []
    async with testbed(RATE_LIMITS=json.dumps(HIGH_LIMITS)) as bed:
        replica = await bed.started()
        async with open_channel([replica.grpc], NONE) as channel:
            client = Client(channel)
            members = await sign_up_members(client, ledger, "m", CALLERS)
            operations: dict[Operation, float] = {
                read_any(members): 10,
                read_self: 5,
                list_posts: 3,
                write_post: 1,
                renew_session: 0.2,
            }
            async with calling(client, ledger, members, operations):
                usual = await _results(client, asyncio.sleep(FAULT_SECONDS))
                for name, fault in FAULTS.items():
                    results = await _results(client, fault(bed))
                    rows += _rows(name, results, usual)
                    await asyncio.sleep(1.5)
        rows.append(await _attempts(bed))
    return rows


async def _results(client: Client, fault: Awaitable[object]) -> list[Result]:
    """Return the calls that ran during a fault."""
    began = time.monotonic()
    await fault
    return [result for result in client.results if result.began >= began]


def _rows(name: str, results: list[Result], usual: list[Result]) -> list[ResultRow]:
    succeeded = 100 * sum(result.ok for result in results) / len(results)
    added = (_p99(results) - _p99(usual)) * 1e3
    details = {f"{r.code.name} {r.details[:50]}" for r in results if not r.ok}
    calls = "; ".join([f"of {len(results):,} calls", *sorted(details)])
    notes = f"{_p99(usual) * 1e3:.0f} ms without the fault"
    return [
        at_least(f"Redis {name}: calls that succeed", succeeded, 99.9, "%", calls),
        at_most(f"Redis {name}: added to p99", added, 100, "ms", notes),
    ]


def _p99(results: list[Result]) -> float:
    """Return the p99 without log-ins, whose time is that of the hash."""
    return percentile([r.seconds for r in results if r.method != "Login"], 99)


async def _attempts(bed: Testbed) -> ResultRow:
    """Return how many passwords two replicas verify without Redis."""
    limits = {"RATE_LIMITS": json.dumps(CONTRACT_LIMITS)}
    replicas = [await bed.started(limits) for _ in range(2)]
    async with open_channel([replicas[0].grpc], NONE) as channel:
        await sign_up_members(Client(channel), Ledger(), "victim", 1)
    bed.stores.signal_valkey(signal.SIGKILL)
    verified = 0
    for replica in replicas:
        async with open_channel([replica.grpc], NONE) as channel:
            client = Client(channel)
            for _ in range(ATTEMPTS):
                request = auth_pb2.LoginRequest(
                    identifier="victim_000", password="Wr0ng-password"
                )
                await client.call(client.auth.Login, request)
            codes = [result.code for result in client.results]
            verified += codes.count(grpc.StatusCode.UNAUTHENTICATED)
    name = "passwords verified per minute by 2 replicas without Redis"
    return at_most(name, verified, LOGIN_LIMIT * len(replicas), "attempts")
