"""L12: the order in which a process drains, with log-ins in flight."""

import asyncio
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blatam.auth.v1 import auth_pb2
from tests.fault_proxy import fault_proxy, proxied_database_url, to_postgres
from tests.load.faults.experiment import at_most, exactly, experiment
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import NONE, open_channel
from tests.load.faults.replicas import Process, testbed
from tests.load.faults.traffic import Client, Member, sign_up_members
from tests.load.row import ResultRow
from tests.running import PASSWORD

LOG_INS = 20
LATENCY_SECONDS = 0.01  # of each message to and from Postgres
PROBE_SECONDS = 0.01
IN_FLIGHT_SECONDS = 0.1  # from the first log-in to the signal


@dataclass
class DrainObserver:
    """Notes when a process reports that it drains, and when it stops accepting."""

    process: Process
    not_serving_at: float = float("inf")
    not_ready_at: float = float("inf")
    closed_at: float = float("inf")
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_reported_first(self) -> bool:
        """Whether both health checks failed before a connection was refused."""
        return max(self.not_serving_at, self.not_ready_at) < self.closed_at

    def start(self, channel: grpc.aio.Channel) -> None:
        """Observe until the process has ended."""
        for observe in (self._watch(channel), self._poll_ready(), self._poll_tcp()):
            self.tasks.append(asyncio.create_task(observe))

    async def _watch(self, channel: grpc.aio.Channel) -> None:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with suppress(grpc.aio.AioRpcError):
            async for reply in stub.Watch(health_pb2.HealthCheckRequest()):
                self.started.set()
                if reply.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    self.not_serving_at = min(self.not_serving_at, time.monotonic())

    async def _poll_ready(self) -> None:
        async with httpx.AsyncClient() as http:
            with suppress(httpx.HTTPError):
                while (  # noqa: ASYNC110 - asked by HTTP
                    await http.get(f"{self.process.url}/readyz")
                ).is_success:
                    await asyncio.sleep(PROBE_SECONDS)
                self.not_ready_at = time.monotonic()

    async def _poll_tcp(self) -> None:
        host, _, port = self.process.grpc.rpartition(":")
        with suppress(OSError):
            while True:
                _, writer = await asyncio.open_connection(host, int(port))
                writer.transport.abort()
                await asyncio.sleep(PROBE_SECONDS)
        self.closed_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class Drained:
    """What was observed from SIGTERM to the end of a process."""

    log_ins: Client
    observer: DrainObserver
    stopped_at: float
    exit_code: int


async def drain(process: Process, log_ins: int) -> Drained:
    """Send SIGTERM while log-ins are in flight; return when the process has ended."""
    observer = DrainObserver(process)
    async with (
        open_channel([process.grpc], NONE) as channel,
        open_channel([process.grpc], NONE) as watching,
    ):
        client = Client(channel, timeout=30)
        members = await sign_up_members(client, Ledger(), "m", log_ins)
        client.results.clear()
        observer.start(watching)
        await observer.started.wait()
        tasks = [asyncio.create_task(_log_in(client, member)) for member in members]
        await asyncio.sleep(IN_FLIGHT_SECONDS)
        stopped_at = time.monotonic()
        assert process.child
        process.child.send_signal(signal.SIGTERM)
        await asyncio.gather(*tasks)
        code = await process.child.wait()
        await asyncio.gather(*observer.tasks)
    return Drained(client, observer, stopped_at, code)


@experiment("L12", max_seconds=120)
async def process_drains() -> list[ResultRow]:
    """Send SIGTERM while slow log-ins are in flight and health is watched."""
    async with testbed() as bed:
        url = bed.stores.database_url
        async with fault_proxy(to_postgres(url)) as proxy:
            settings = {"DATABASE_URL": proxied_database_url(url, proxy)}
            process = await bed.started(settings)
            proxy.latency = LATENCY_SECONDS
            return _rows(await drain(process, LOG_INS))


async def _log_in(client: Client, member: Member) -> None:
    request = auth_pb2.LoginRequest(identifier=member.username, password=PASSWORD)
    await client.call(client.auth.Login, request)


def _rows(drained: Drained) -> list[ResultRow]:
    client, observer = drained.log_ins, drained.observer
    failed, stopped_at = len(client.failures), drained.stopped_at
    unfinished = sum(result.ended > stopped_at for result in client.results)
    notes = (
        f"NOT_SERVING after {observer.not_serving_at - stopped_at:.2f} s, "
        f"/readyz 503 after {observer.not_ready_at - stopped_at:.2f} s, "
        f"closed after {observer.closed_at - stopped_at:.2f} s"
    )
    calls = f"{unfinished} in flight; {client.summary()}"
    return [
        at_most("drain: log-ins in flight that fail", failed, 0, "", calls),
        exactly(
            "drain: reported before the listener closes",
            observer.is_reported_first,
            1,
            "",
            notes,
        ),
        exactly("drain: exit code", drained.exit_code, 0),
    ]
