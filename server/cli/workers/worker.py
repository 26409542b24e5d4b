"""One worker process: `python -m server.cli.workers.worker`, which the supervisor runs.

It imports the application, then waits for its assignment: a process that waits
replaces one that has crashed within a fraction of the time that the imports take.
"""

from __future__ import annotations

import asyncio
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop

from server.cli import state_dir
from server.cli.terminal import configure_logging, read_settings, report_errors
from server.cli.workers.control import (
    FAILED,
    LISTENING,
    READY,
    Assignment,
    SupervisorLink,
)
from server.composition.listeners import stopping
from server.composition.listeners.service import Service, running_service
from server.config import Settings
from server.observability.logging import add_worker
from server.observability.metrics.workers import WorkerFiles

READY_POLL_SECONDS = 0.05
log = structlog.get_logger()


def worker(
    control: Annotated[int, typer.Option()],
    http: Annotated[int, typer.Option()],
    grpc_listen: Annotated[str, typer.Option()],
    metrics_folder: Annotated[Path | None, typer.Option()] = None,
    up: Annotated[bool, typer.Option()] = False,
) -> None:
    """Serve as one of several workers.

    `control` and `http` are file descriptors; the folder is where the supervisor reads
    metrics.
    """
    link = SupervisorLink(control)
    assignment = link.wait_for_assignment()
    if assignment is None:
        return
    _pin(assignment)
    listener = socket.socket(fileno=http)

    def fail(message: str) -> None:
        link.send(FAILED, message)

    with report_errors(report=fail):
        settings = _settings(up)
        configure_logging(settings, add_worker(assignment.number))
        settings = settings.model_copy(
            update={"grpc_listen": grpc_listen, "metrics_listen": ""}
        )
    files = WorkerFiles.new(metrics_folder) if metrics_folder else None
    if files:
        settings = settings.model_copy(update={"metrics_listen": files.address})
    with report_errors(settings, report=fail):
        uvloop.run(_serve(settings, listener, link, files, migrated=up))


def _pin(assignment: Assignment) -> None:
    """Run on the CPUs of the assignment; threads that start later do as well."""
    if assignment.cpus:
        os.sched_setaffinity(0, assignment.cpus)


def _settings(up: bool) -> Settings:
    """Return the settings; those of `academy up` name its embedded servers."""
    if not up:
        return read_settings("database_url", "redis_url", "secret_key")
    return state_dir.with_saved_values(read_settings(local=True))


async def _serve(
    settings: Settings,
    listener: socket.socket,
    link: SupervisorLink,
    files: WorkerFiles | None,
    *,
    migrated: bool,
) -> None:
    link.watch()
    call_counts = files.call_counts if files else None
    async with running_service(
        settings, listener, migrated=migrated, call_counts=call_counts
    ) as service:
        link.send(LISTENING)
        watching = asyncio.create_task(_report_ready(service, link))
        try:
            await stopping.until_stopped(
                service.application.check, link.stopped, supervised=True
            )
        finally:
            watching.cancel()
        is_orphan = link.stopped.is_set() and not link.replaced
        await service.drain(
            timedelta(0) if is_orphan else settings.lame_duck, replaced=link.replaced
        )
    if files:
        files.write_final(await service.application.render_metrics())


async def _report_ready(service: Service, link: SupervisorLink) -> None:
    while not await service.application.ready():  # noqa: ASYNC110 - as probes ask
        await asyncio.sleep(READY_POLL_SECONDS)
    link.send(READY)


if __name__ == "__main__":
    typer.run(worker)
