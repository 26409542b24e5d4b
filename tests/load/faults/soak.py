"""L22: memory, objects and file descriptors over a long time of mixed calls."""

import asyncio
import os
import random
import re
import resource
import signal
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from blatam.user.v1 import user_pb2
from tests.load.faults.experiment import at_most, experiment
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import NONE, open_channel
from tests.load.faults.replicas import Process, seconds_until, testbed
from tests.load.faults.traffic import (
    READS,
    WRITES,
    Client,
    Member,
    calling,
    follow,
    read_self,
    sign_up_members,
)
from tests.load.row import ResultRow

MIB = 1024 * 1024
UNITS = {"s": 1, "m": 60, "h": 3600}
WARM_UP_SHARE = 0.2  # 5 of 25 minutes
CALLERS = 20
OPEN_FILES = 160  # the limit of the process, reached by the connections below
CONNECTIONS = 200
FAULT_INTERVAL_SECONDS = 15.0
IDLE_SECONDS = 7.0  # longer than the caches in the process keep an account


def _seconds(duration: str) -> float:
    matched = re.fullmatch(r"(\d+)([smh])", duration)
    assert matched, "SOAK is a number and s, m or h, for example 25m"
    return int(matched[1]) * UNITS[matched[2]]


SOAK_SECONDS = _seconds(os.environ.get("SOAK", "2m"))


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process uses while no call runs."""

    memory: int
    objects: int
    files: int


@experiment("L22", max_seconds=120 + 1.5 * SOAK_SECONDS)
async def soak() -> list[ResultRow]:
    """Call, cancel and reconnect for a long time; compare with the end of warm-up."""
    async with testbed(LOG_LEVEL="warning") as bed:
        count_file = bed.folder / "objects"
        module = "tests.load.faults.observed_serve"
        process = await bed.started(command=("-m", module, str(count_file)))
        psutil.Process(process.pid).rlimit(
            resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES)
        )
        async with open_channel([process.grpc], NONE) as channel:
            members = await sign_up_members(Client(channel), Ledger(), "m", CALLERS)
        calls = await _calling(process, members, SOAK_SECONDS * WARM_UP_SHARE)
        before = await _usage(process, count_file)
        calls = await _calling(process, members, SOAK_SECONDS * (1 - WARM_UP_SHARE))
        after = await _usage(process, count_file)
    minutes = f"{SOAK_SECONDS / 60:.0f} minutes with warm-up, {calls:,} calls"
    grown = (after.memory - before.memory) / MIB
    objects = 100 * (after.objects - before.objects) / before.objects
    return [
        at_most(
            "soak: growth of RSS", grown, 4, "MiB", f"{minutes}; {after.memory // MIB}"
        ),
        at_most("soak: growth of objects", objects, 1, "%", f"of {before.objects:,}"),
        at_most(
            "soak: file descriptors more",
            after.files - before.files,
            0,
            "",
            f"{before.files} before",
        ),
    ]


async def _calling(process: Process, members: list[Member], seconds: float) -> int:
    """Let members call on changing connections; return the number of calls."""
    calls, end = 0, time.monotonic() + seconds
    operations = {**READS, **WRITES, follow(members): 0.5}
    while (remaining := end - time.monotonic()) > 0:
        async with open_channel([process.grpc], NONE) as channel:
            client = Client(channel)
            async with calling(client, Ledger(), members, operations, 0.02):
                cancelling = asyncio.create_task(_cancel_calls(client, members))
                await asyncio.sleep(min(FAULT_INTERVAL_SECONDS, remaining))
                cancelling.cancel()
            calls += len(client.results)
        await _exhaust_files(process)
        await _until_answered(process, members[0])
    return calls


async def _cancel_calls(client: Client, members: list[Member]) -> None:
    while True:
        member = random.choice(members)
        call = client.users.GetUser(
            user_pb2.GetUserRequest(id=member.id), metadata=member.metadata
        )
        await asyncio.sleep(random.uniform(0, 0.02))
        call.cancel()
        await asyncio.sleep(0.02)


async def _exhaust_files(process: Process) -> None:
    """Open more connections than the process may have files, then close them."""
    async with AsyncExitStack() as stack:
        for number in range(CONNECTIONS):
            address = process.rest if number % 2 else process.grpc
            host, _, port = address.rpartition(":")
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(0.5):
                    _, writer = await asyncio.open_connection(host, int(port))
                stack.callback(writer.transport.abort)
        await asyncio.sleep(0.5)


async def _until_answered(process: Process, member: Member) -> None:
    async def is_answered() -> bool:
        async with open_channel([process.grpc], NONE) as channel:
            client = Client(channel, timeout=2)
            await read_self(client, Ledger(), member)
            return client.results[-1].ok

    await seconds_until(is_answered, 30, 0.2)


async def _usage(process: Process, count_file: Path) -> Usage:
    """Wait until the process is idle, and measure it."""
    await asyncio.sleep(IDLE_SECONDS)
    counted_before = _modified_at(count_file)
    assert process.child
    process.child.send_signal(signal.SIGUSR1)

    async def is_counted() -> bool:
        return _modified_at(count_file) > counted_before

    await seconds_until(is_counted)
    return _measure(process.pid, count_file)


def _modified_at(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def _measure(pid: int, count_file: Path) -> Usage:
    process = psutil.Process(pid)
    return Usage(
        process.memory_info().rss, int(count_file.read_text()), process.num_fds()
    )
