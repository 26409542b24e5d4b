"""L1 to L3: replicas that are restarted or killed while callers call."""

import asyncio
import itertools
import random
import signal
import uuid
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from tests.load.faults.experiment import at_most, experiment
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import NONE, SHIPPED, UNAVAILABLE_ONLY, open_channel
from tests.load.faults.replicas import Process, Testbed, seconds_until, testbed
from tests.load.faults.traffic import (
    CALLERS,
    PAUSE_SECONDS,
    Client,
    Member,
    calling,
    sign_up_members,
)
from tests.load.row import ResultRow

RESTARTS = 10
KILLS = 6
OTHER_CALLERS = 20  # with each of the other policies, beside the shipped one
HTTP_CALLERS = 40
POLICIES = {
    "shipped policy": (SHIPPED, CALLERS),
    "UNAVAILABLE-only policy": (UNAVAILABLE_ONLY, OTHER_CALLERS),
    "no policy": (NONE, OTHER_CALLERS),
}
WORKERS_REPLACED = b'"event":"workers restarted"'
SERVING = b'"event":"serving"'
SETTLE_SECONDS = 1.5  # more than the longest back-off of a reconnecting client


async def restart_in_turn(replicas: Sequence[Process], times: int) -> str:
    """Restart one replica after the other; return the exit codes as a note."""
    codes = set()
    for number in range(times):
        codes.add(await replicas[number % len(replicas)].restart())
        await asyncio.sleep(SETTLE_SECONDS)
    return f"exit codes {sorted(codes)}"


async def restart_workers(supervisor: Process, times: int) -> str:
    """Let the supervisor replace all its workers, some times; return a note."""
    assert supervisor.child
    for _ in range(times):
        replaced = supervisor.log.read_bytes().count(WORKERS_REPLACED) + 1

        async def is_replaced(count: int = replaced) -> bool:
            return supervisor.log.read_bytes().count(WORKERS_REPLACED) == count

        supervisor.child.send_signal(signal.SIGHUP)
        await seconds_until(is_replaced, 120, 0.1)
        await asyncio.sleep(SETTLE_SECONDS)
    return f"{times} x SIGHUP"


async def lost_rows(
    bed: Testbed, ledger: Ledger, addresses: Sequence[str], notes: str = ""
) -> list[ResultRow]:
    """Return the row with the number of acknowledged writes that do not hold."""
    async with open_channel(addresses) as channel:
        lost = await ledger.lost(bed.database, channel)
    described = "; ".join([f"of {ledger.size:,}", *filter(None, [notes]), *lost[:3]])
    return [at_most("acknowledged writes lost", len(lost), 0, "writes", described)]


@experiment("L1", max_seconds=600)
async def rolling_restarts() -> list[ResultRow]:
    """Restart replicas, then workers, under callers with three client policies."""
    async with testbed() as bed:
        replicas = [await bed.started() for _ in range(2)]
        rows = await _under_policies(
            bed,
            f"{RESTARTS} restarts of 2 replicas",
            [replica.grpc for replica in replicas],
            restart_in_turn(replicas, RESTARTS),
        )
        for replica in replicas:
            await replica.kill()
        workers = await bed.started({"WORKERS": "2"})
        rows += await _under_policies(
            bed,
            f"{RESTARTS} restarts of 2 workers",
            [workers.grpc],
            restart_workers(workers, RESTARTS // 2),
        )
        return rows


async def _under_policies(
    bed: Testbed,
    name: str,
    addresses: Sequence[str],
    restarts: Coroutine[Any, Any, str],
) -> list[ResultRow]:
    """Return how many calls fail with each policy while the coroutine restarts."""
    ledger, clients = Ledger(), {}
    async with AsyncExitStack() as stack:
        for policy_name, (policy, callers) in POLICIES.items():
            channel = await stack.enter_async_context(open_channel(addresses, policy))
            client = clients[policy_name] = Client(channel)
            prefix = f"m{uuid.uuid4().hex[:8]}"
            members = await sign_up_members(client, ledger, prefix, callers)
            client.results.clear()
            await stack.enter_async_context(calling(client, ledger, members))
        notes = await restarts
    rows = [
        at_most(
            f"{name}, {POLICIES[policy_name][1]} callers, {policy_name}: failed",
            len(client.failures),
            0 if policy_name == "shipped policy" else float("inf"),
            "calls",
            client.summary(),
        )
        for policy_name, client in clients.items()
    ]
    return rows + await lost_rows(bed, ledger, addresses, notes)


@dataclass
class HttpCallers:
    """Callers over HTTP keep-alive that repeat a failed request once, elsewhere."""

    urls: Sequence[str]
    token: str
    calls: int = 0
    repeated: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, count: int) -> None:
        """Let this number of callers request until they are stopped."""
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(self._caller(number))

    async def _caller(self, number: int) -> None:
        headers = {"authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(headers=headers, timeout=10) as http:
            targets = itertools.islice(itertools.cycle(self.urls), number, None)
            url = next(targets)
            while not self.stopping.is_set():
                self.calls += 1
                if await self._fault(http, url):
                    self.repeated += 1
                    url = next(targets)
                    if fault := await self._fault(http, url):
                        self.failures[fault] += 1
                await asyncio.sleep(PAUSE_SECONDS)

    async def _fault(self, http: httpx.AsyncClient, url: str) -> str:
        """Request the caller's account; return "" or what went wrong."""
        try:
            response = await http.get(f"{url}/api/v1/users/me")
        except httpx.HTTPError as error:
            return type(error).__name__
        return "" if response.is_success else str(response.status_code)


@experiment("L2", max_seconds=600)
async def rolling_restarts_over_rest() -> list[ResultRow]:
    """Restart replicas, then workers of one socket, under REST callers."""
    async with testbed() as bed:
        replicas = [await bed.started() for _ in range(2)]
        urls = [replica.url for replica in replicas]
        member = await _member(replicas[0])
        restarts = restart_in_turn(replicas, RESTARTS)
        rows = [await _under_rest_callers("replicas", urls, member, restarts)]
        for replica in replicas:
            await replica.kill()
        workers = await bed.started({"WORKERS": "2"})
        restarts = restart_workers(workers, RESTARTS // 2)
        rows.append(
            await _under_rest_callers("workers", [workers.url], member, restarts)
        )
        return rows


async def _member(process: Process) -> Member:
    async with open_channel([process.grpc]) as channel:
        return (await sign_up_members(Client(channel), Ledger(), "rest", 1))[0]


async def _under_rest_callers(
    name: str, urls: Sequence[str], member: Member, restarts: Coroutine[Any, Any, str]
) -> ResultRow:
    callers = HttpCallers(urls, member.tokens.access_token)
    task = asyncio.create_task(callers.run(HTTP_CALLERS))
    await restarts
    callers.stopping.set()
    await task
    notes = f"{callers.calls:,} calls, {callers.repeated} repeated once"
    if callers.failures:
        notes += f"; {dict(callers.failures)}"
    title = f"{RESTARTS} restarts of 2 {name}, {HTTP_CALLERS} REST callers, one retry"
    return at_most(f"{title}: failed", callers.failures.total(), 0, "calls", notes)


@experiment("L3", max_seconds=400)
async def kills_under_load() -> list[ResultRow]:
    """End replicas, then workers, by SIGKILL under callers with the shipped policy."""
    async with testbed() as bed:
        replicas = [await bed.started() for _ in range(2)]
        addresses = [replica.grpc for replica in replicas]
        rows = await _under_kills(bed, "replicas", addresses, kill_in_turn(replicas))
        for replica in replicas:
            await replica.kill()
        workers = await bed.started({"WORKERS": "2"})
        delays: list[float] = []
        kills = kill_workers(workers, delays)
        rows += await _under_kills(bed, "workers", [workers.grpc], kills)
        each = ", ".join(f"{seconds:.1f}" for seconds in delays)
        return [*rows, at_most("killed worker replaced", max(delays), 2, "s", each)]


async def kill_in_turn(replicas: Sequence[Process]) -> None:
    """Kill one replica after the other, and start it again."""
    for number in range(KILLS):
        await asyncio.sleep(SETTLE_SECONDS)
        await replicas[number % 2].kill()
        await replicas[number % 2].start()


async def kill_workers(supervisor: Process, delays: list[float]) -> None:
    """Kill one worker after the other; add how long each takes to be replaced."""
    for _ in range(KILLS):
        await asyncio.sleep(SETTLE_SECONDS)
        served = supervisor.log.read_bytes().count(SERVING)
        random.choice(listening_workers(supervisor)).kill()

        async def is_replaced(count: int = served) -> bool:
            return supervisor.log.read_bytes().count(SERVING) > count

        delays.append(await seconds_until(is_replaced, 60))
    await asyncio.sleep(SETTLE_SECONDS)


def listening_workers(supervisor: Process) -> list[psutil.Process]:
    """Return the processes of the supervisor that serve gRPC, without the spare."""
    port = int(supervisor.grpc.rpartition(":")[2])
    return [
        child
        for child in psutil.Process(supervisor.pid).children()
        if any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for connection in child.net_connections("tcp")
        )
    ]


async def _under_kills(
    bed: Testbed, name: str, addresses: Sequence[str], kills: Coroutine[Any, Any, None]
) -> list[ResultRow]:
    ledger = Ledger()
    async with open_channel(addresses, SHIPPED) as channel:
        client = Client(channel)
        prefix = f"m{uuid.uuid4().hex[:8]}"
        members = await sign_up_members(client, ledger, prefix, CALLERS)
        client.results.clear()
        async with calling(client, ledger, members):
            await kills
    title = f"SIGKILL of 2 {name} x{KILLS}, {CALLERS} callers, shipped policy: failed"
    row = at_most(title, len(client.failures), 0, "calls", client.summary())
    return [row, *await lost_rows(bed, ledger, addresses)]
