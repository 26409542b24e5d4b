"""L1 to L3: replicas that are restarted or killed while callers call."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import httpx

from tests.load.faults.experiment import at_most, experiment
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import NONE, SHIPPED, UNAVAILABLE_ONLY, open_channel
from tests.load.faults.replicas import Process, Testbed, testbed
from tests.load.faults.traffic import (
    CALLERS,
    PAUSE_SECONDS,
    Client,
    calling,
    sign_up_members,
)
from tests.load.row import ResultRow

RESTARTS = 10
KILLS = 6
OTHER_CALLERS = 20  # with each of the other policies, beside the shipped one
HTTP_CALLERS = 40
SETTLE_SECONDS = 1.5  # more than the longest back-off of a reconnecting client


async def restart_in_turn(replicas: Sequence[Process], times: int) -> set[int]:
    """Restart one replica after the other; return the exit codes."""
    codes = set()
    for number in range(times):
        codes.add(await replicas[number % len(replicas)].restart())
        await asyncio.sleep(SETTLE_SECONDS)
    return codes


async def lost_rows(
    bed: Testbed, ledger: Ledger, addresses: Sequence[str], notes: str = ""
) -> list[ResultRow]:
    """Return the row with the number of acknowledged writes that do not hold."""
    async with open_channel(addresses) as channel:
        lost = await ledger.lost(bed.database, channel)
    described = "; ".join([f"of {ledger.size:,}", *filter(None, [notes]), *lost[:3]])
    return [at_most("acknowledged writes lost", len(lost), 0, "writes", described)]


@experiment("L1", max_seconds=400)
async def rolling_restarts() -> list[ResultRow]:
    """Restart two replicas in turn under callers with three client policies."""
    policies = {
        "shipped policy": (SHIPPED, CALLERS),
        "UNAVAILABLE-only policy": (UNAVAILABLE_ONLY, OTHER_CALLERS),
        "no policy": (NONE, OTHER_CALLERS),
    }
    ledger, clients = Ledger(), {}
    async with testbed() as bed:
        replicas = [await bed.started() for _ in range(2)]
        addresses = [replica.grpc for replica in replicas]
        async with AsyncExitStack() as stack:
            for number, (name, (policy, callers)) in enumerate(policies.items()):
                channel = open_channel(addresses, policy)
                client = clients[name] = Client(
                    await stack.enter_async_context(channel)
                )
                members = await sign_up_members(client, ledger, f"m{number}", callers)
                client.results.clear()
                await stack.enter_async_context(calling(client, ledger, members))
            codes = await restart_in_turn(replicas, RESTARTS)
        rows = [
            at_most(
                f"{RESTARTS} restarts, {policies[name][1]} callers, {name}: failed",
                len(client.failures),
                0 if name == "shipped policy" else float("inf"),
                "calls",
                client.summary(),
            )
            for name, client in clients.items()
        ]
        codes_text = f"exit codes {sorted(codes)}"
        return rows + await lost_rows(bed, ledger, addresses, codes_text)


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


@experiment("L2", max_seconds=300)
async def rolling_restarts_over_rest() -> list[ResultRow]:
    """Restart two replicas in turn under REST callers on kept connections."""
    async with testbed() as bed:
        replicas = [await bed.started() for _ in range(2)]
        addresses = [replica.grpc for replica in replicas]
        async with open_channel(addresses) as channel:
            client = Client(channel)
            (member,) = await sign_up_members(client, Ledger(), "rest", 1)
        urls = [replica.url for replica in replicas]
        callers = HttpCallers(urls, member.tokens.access_token)
        task = asyncio.create_task(callers.run(HTTP_CALLERS))
        await restart_in_turn(replicas, RESTARTS)
        callers.stopping.set()
        await task
        notes = f"{callers.calls:,} calls, {callers.repeated} repeated once"
        if callers.failures:
            notes += f"; {dict(callers.failures)}"
        failed = callers.failures.total()
        name = f"{RESTARTS} restarts, {HTTP_CALLERS} REST callers, one retry: failed"
        return [at_most(name, failed, 0, "calls", notes)]


@experiment("L3", max_seconds=240)
async def kills_under_load() -> list[ResultRow]:
    """End replicas by SIGKILL, one at a time, under callers with the shipped policy."""
    ledger = Ledger()
    async with testbed() as bed:
        replicas = [await bed.started() for _ in range(2)]
        addresses = [replica.grpc for replica in replicas]
        async with open_channel(addresses, SHIPPED) as channel:
            client = Client(channel)
            members = await sign_up_members(client, ledger, "m", CALLERS)
            client.results.clear()
            async with calling(client, ledger, members):
                for number in range(KILLS):
                    await asyncio.sleep(SETTLE_SECONDS)
                    await replicas[number % 2].kill()
                    await replicas[number % 2].start()
        name = f"SIGKILL x{KILLS}, {CALLERS} callers, shipped policy: failed"
        row = at_most(name, len(client.failures), 0, "calls", client.summary())
        return [row, *await lost_rows(bed, ledger, addresses)]
