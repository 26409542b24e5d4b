"""Runs a supervisor: its sockets, its metrics listener, its signals."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from server.cli.workers.control import Assignment
from server.cli.workers.process import WorkerProcess
from server.cli.workers.supervisor import Supervisor
from server.composition.listeners.metrics import listening_metrics
from server.composition.listeners.sockets import (
    bind_http,
    bound_address,
    reserve_grpc_port,
)
from server.config import Settings
from server.observability.metrics.workers import WorkerMetrics

CHECK_INTERVAL_SECONDS = 1.0
# Beyond LAME_DUCK: running calls, the delivery in progress, the pools.
DRAIN_TIMEOUT = timedelta(seconds=20)


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What the workers are, and what happens around them.

    `announce` is called with the addresses of gRPC and HTTP once all workers listen.
    `check` is called every second; an error that it raises ends the workers.
    """

    settings: Settings
    announce: Callable[[str, str], None]
    arguments: tuple[str, ...] = ()
    check: Callable[[], None] | None = None


async def run_workers(plan: WorkerPlan) -> bool:
    """Run workers until a signal; return whether all of them ended well.

    The addresses are bound here: one that is in use is refused before a worker starts.
    The socket of gRPC reserves the port; each worker listens on it by SO_REUSEPORT.
    """
    settings = plan.settings
    with (
        reserve_grpc_port(settings.grpc_listen) as grpc,
        bind_http(settings.http_listen) as http,
    ):
        addresses = (
            bound_address(settings.grpc_listen, grpc),
            bound_address(settings.http_listen, http),
        )
        async with serving_metrics(settings) as metrics_arguments:
            arguments = (*plan.arguments, *metrics_arguments)
            arguments += ("--grpc-listen", addresses[0])
            supervisor = Supervisor(
                partial(WorkerProcess.start, arguments, http),
                assignments(settings.workers),
                settings.lame_duck + DRAIN_TIMEOUT,
            )
            _handle_signals(supervisor)
            async with _checking(plan.check, supervisor):
                return await supervisor.run(partial(plan.announce, *addresses))


@asynccontextmanager
async def serving_metrics(settings: Settings) -> AsyncIterator[tuple[str, ...]]:
    """Serve the metrics of all workers; yield the workers' arguments."""
    if not settings.metrics_listen:
        yield ()
        return
    # TMPDIR may be too long for the path of a socket.
    with TemporaryDirectory(prefix="blatam-metrics-", dir="/tmp") as name:
        render = WorkerMetrics(Path(name), settings.workers).render
        async with listening_metrics(settings.metrics_listen, render):
            yield ("--metrics-folder", name)


@asynccontextmanager
async def _checking(
    check: Callable[[], None] | None, supervisor: Supervisor
) -> AsyncIterator[None]:
    """Call `check` every second; an error stops the workers and is raised after."""
    if check is None:
        yield
        return
    checks = asyncio.create_task(_check_regularly(check, supervisor))
    try:
        yield
    finally:
        checks.cancel()
        await asyncio.wait([checks])
    if not checks.cancelled():
        checks.result()


async def _check_regularly(check: Callable[[], None], supervisor: Supervisor) -> None:
    while True:
        try:
            check()
        except Exception:
            supervisor.stop()
            raise
        await asyncio.sleep(CHECK_INTERVAL_SECONDS)


def _handle_signals(supervisor: Supervisor) -> None:
    """SIGTERM and SIGINT drain, and a second one kills; SIGHUP restarts."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        supervisor.stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.kill)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.restart)


def assignments(workers: int) -> list[Assignment]:
    """Return the assignment of each worker, with an equal share of the CPUs.

    A share has more than one CPU on a large machine: a worker hashes passwords in
    threads, and processes of other containers may be pinned to the same first CPUs.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if workers > len(cpus):
        cpus = []
    return [
        Assignment(number, tuple(cpus[number - 1 :: workers]))
        for number in range(1, workers + 1)
    ]
