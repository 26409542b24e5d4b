"""What one event costs when many clients watch the accounts (P19)."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import psutil
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from server.store.connections.connect import Database
from tests.load.row import ResultRow
from tests.load.service import ANA, Service, running

SUBSCRIBERS = int(os.environ.get("BENCH_SUBSCRIBERS", "1000"))
STREAMS_PER_CHANNEL = 250
EVENTS = 30
PACED_SUBSCRIBERS = 10
PACED_EVENTS = 300
EVENTS_PER_SECOND = 100
IDLE_SECONDS = 4
MAX_SECONDS = 120
_EVENT = sa.text(
    "insert into outbox (kind, user_id, payload, created_at)"
    " values ('user.updated', :user, '{}', clock_timestamp())"
)


@dataclass(slots=True)
class Subscribers:
    """Clients that watch; `arrivals` has the time of each event at each client."""

    users: int
    opened: int = 0
    arrivals: list[float] = field(default_factory=list)

    async def read(self, stub: Any, metadata: Any) -> None:
        """Watch until cancelled."""
        stream = stub.WatchUsers(user_pb2.WatchUsersRequest(), metadata=metadata)
        async for response in stream:
            if response.HasField("updated"):
                assert response.updated.id == self.users
                self.arrivals.append(time.perf_counter())
            elif response.resume_token and self.opened < SUBSCRIBERS:
                self.opened += 1

    async def received(self, count: int) -> None:
        """Wait for so many events over all clients."""
        async with asyncio.timeout(MAX_SECONDS):
            while len(self.arrivals) < count:  # noqa: ASYNC110 - an event costs CPU
                await asyncio.sleep(0.01)


async def rows() -> list[ResultRow]:
    """Return the CPU time of a delivered event, and the delay at a steady rate."""
    with running() as service:
        database = Database(service.database)
        metadata = await service_key(service, database)
        rows = [
            await _cpu(service, database, metadata),
            await _delay(service, database, metadata),
        ]
        await database.close()
    return rows


async def _cpu(service: Service, database: Database, metadata: Any) -> ResultRow:
    process = psutil.Process(service.process)
    async with watching(service, metadata, SUBSCRIBERS) as subscribers:
        await _publish(database, service.user)
        await subscribers.received(SUBSCRIBERS)
        idle = await _idle_cpu(process)
        started, start = sum(process.cpu_times()[:2]), time.perf_counter()
        for number in range(EVENTS):
            await _publish(database, service.user)
            await subscribers.received((number + 2) * SUBSCRIBERS)
        seconds = time.perf_counter() - start
        cpu = sum(process.cpu_times()[:2]) - started
    delivered = EVENTS * SUBSCRIBERS
    assert len(subscribers.arrivals) == delivered + SUBSCRIBERS
    return ResultRow(
        f"P19 CPU per event delivered to {SUBSCRIBERS:,}",
        (cpu - idle * seconds) / delivered * 1e6,
        30,
        better="lower",
        unit="us",
        notes=f"{delivered:,} deliveries; {cpu / delivered * 1e6:.0f} us with what the"
        f" process takes anyway, {idle * 1e3:.0f} ms of CPU a second",
    )


async def _idle_cpu(process: psutil.Process) -> float:
    """Return the seconds of CPU a second while nothing is delivered."""
    started = sum(process.cpu_times()[:2])
    await asyncio.sleep(IDLE_SECONDS)
    return (sum(process.cpu_times()[:2]) - started) / IDLE_SECONDS


async def _delay(service: Service, database: Database, metadata: Any) -> ResultRow:
    """Publish at a steady rate; the delay is from before the commit."""
    published: list[float] = []
    async with watching(service, metadata, PACED_SUBSCRIBERS) as subscribers:
        start = time.perf_counter()
        for number in range(PACED_EVENTS):
            due = start + number / EVENTS_PER_SECOND
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            published.append(time.perf_counter())
            await _publish(database, service.user)
        await subscribers.received(PACED_EVENTS * PACED_SUBSCRIBERS)
    arrivals = sorted(subscribers.arrivals)
    delays = sorted(
        arrived - published[number // PACED_SUBSCRIBERS]
        for number, arrived in enumerate(arrivals)
    )
    return ResultRow(
        f"P19 delay at {EVENTS_PER_SECOND} events a second: p99",
        delays[int(len(delays) * 0.99)] * 1e3,
        100,
        better="lower",
        unit="ms",
        notes=f"{PACED_SUBSCRIBERS} subscribers; median"
        f" {delays[len(delays) // 2] * 1e3:.0f} ms; "
        f"{PACED_EVENTS / (published[-1] - start):.0f} events a second",
    )


async def _publish(database: Database, user: int) -> None:
    async with database.reading() as connection:
        await connection.execute(_EVENT, {"user": user})


async def service_key(service: Service, database: Database) -> Any:
    """Return the metadata of calls with a service key."""
    promoted = sa.text("update users set role = 3 where id = :id")
    async with database.transaction() as connection:
        await connection.execute(promoted, {"id": service.user})
    login = auth_pb2.LoginRequest(identifier=ANA["username"], password=ANA["password"])
    async with grpc.aio.insecure_channel(service.grpc) as channel:
        auth = AuthServiceStub(channel)
        tokens = (await auth.Login(login)).tokens
        bearer = (("authorization", f"Bearer {tokens.access_token}"),)
        request = auth_pb2.CreateServiceKeyRequest(name="watcher")
        key = await auth.CreateServiceKey(request, metadata=bearer)
    return (("authorization", f"Bearer {key.secret}"),)


@asynccontextmanager
async def watching(
    service: Service, metadata: Any, count: int
) -> AsyncIterator[Subscribers]:
    """Open streams over several connections, until each has its first message."""
    subscribers = Subscribers(service.user)
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [
        grpc.aio.insecure_channel(service.grpc, options=options)
        for _ in range(0, count, STREAMS_PER_CHANNEL)
    ]
    tasks = [
        asyncio.create_task(
            subscribers.read(
                UserServiceStub(channels[number // STREAMS_PER_CHANNEL]), metadata
            )
        )
        for number in range(count)
    ]
    async with asyncio.timeout(MAX_SECONDS):
        while subscribers.opened < count:  # noqa: ASYNC110 - an event costs CPU
            await asyncio.sleep(0.05)
    try:
        yield subscribers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in channels:
            await channel.close()
