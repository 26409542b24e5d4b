"""Log-ins: their rate against the raw hash rate (P6), and GetUser beside them (P7).

Nothing is pinned: the hashing threads, the event loop, Postgres and the client share
the cores, as in production.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import grpc
from passlib.hash import argon2

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from tests.load.loader import CORES
from tests.load.row import ResultRow
from tests.load.service import ANA, Service, running

ROUNDS = 5
SECONDS = 4.0  # of each half round
CALLERS = 8
READS_PER_SECOND = 200
HASHING_THREADS = max(1, len(CORES) - 1)  # as the service chooses
# The parameters of the service's own hashes.
HASHER = argon2.using(  # type: ignore[no-untyped-call]
    memory_cost=19_456, time_cost=2, parallelism=1
)


async def rows() -> list[ResultRow]:
    """Return P6 and P7."""
    with running(pinned=False) as service:
        async with grpc.aio.insecure_channel(service.grpc) as channel:
            return [await _rate(channel), await _reads_beside(service, channel)]


async def _rate(channel: grpc.aio.Channel) -> ResultRow:
    hashed = HASHER.hash(ANA["password"])
    raw, ours = [], []
    for _ in range(ROUNDS):
        raw.append(await asyncio.to_thread(_raw_rate, hashed))
        ours.append(await _flood(channel, SECONDS) / SECONDS)
    ratio = statistics.median(o / r for o, r in zip(ours, raw, strict=True))
    notes = (
        f"{statistics.median(ours):.1f} log-ins/s, {statistics.median(raw):.1f} "
        f"verifications/s in {HASHING_THREADS} threads"
    )
    return ResultRow("P6 Login / raw argon2", ratio, 0.95, notes=notes)


def _raw_rate(hashed: str) -> float:
    """Return the verifications per second of as many threads as the service has."""
    count, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        HASHER.verify(ANA["password"], hashed)
        count += 1
    return count / SECONDS * HASHING_THREADS


async def _flood(channel: grpc.aio.Channel, seconds: float) -> int:
    """Log in from several callers, as often as they can; return how often."""
    login = auth_pb2.LoginRequest(identifier=ANA["username"], password=ANA["password"])
    stub = AuthServiceStub(channel)
    end = time.monotonic() + seconds

    async def caller() -> int:
        count = 0
        while time.monotonic() < end:
            await stub.Login(login)
            count += 1
        return count

    return sum(await asyncio.gather(*(caller() for _ in range(CALLERS))))


async def _reads_beside(service: Service, channel: grpc.aio.Channel) -> ResultRow:
    request = user_pb2.GetUserRequest(id=service.user)
    metadata = tuple(service.bearer.items())

    async def read() -> None:
        await UserServiceStub(channel).GetUser(request, metadata=metadata)

    alone, beside = [], []
    for _ in range(ROUNDS):
        alone.append(await _p99(read))
        flood = asyncio.ensure_future(_flood(channel, SECONDS))
        beside.append(await _p99(read))
        await flood
    ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
    notes = (
        f"p99 {statistics.median(alone) * 1e3:.1f} ms alone, "
        f"{statistics.median(beside) * 1e3:.1f} ms beside log-ins, "
        f"{READS_PER_SECOND} reads/s"
    )
    name = "P7 GetUser beside a log-in flood / alone, p99"
    return ResultRow(name, ratio, 2, "lower", notes=notes)


async def _p99(read: Callable[[], Awaitable[None]]) -> float:
    """Return the 99th percentile, in seconds, of reads at a constant rate."""
    seconds: list[float] = []

    async def timed() -> None:
        started = time.monotonic()
        await read()
        seconds.append(time.monotonic() - started)

    async with asyncio.TaskGroup() as group:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            group.create_task(timed())
            await asyncio.sleep(1 / READS_PER_SECOND)
    return sorted(seconds)[len(seconds) * 99 // 100]
