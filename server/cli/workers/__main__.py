"""The supervisor: `python -m server.cli.workers serve` or `up`, with WORKERS above 1.

`academy serve` and `academy up` become this process, which imports neither grpc nor
the application.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import structlog
import typer

from server.cli.embedded import print_banner, start_embedded_servers
from server.cli.workers.control import Assignment
from server.cli.workers.process import WorkerProcess, interpreter
from server.cli.workers.supervisor import Supervisor, WorkerFailed
from server.composition.sockets import (
    CannotListen,
    bind_http,
    bound_address,
    reserve_grpc_port,
)
from server.config import ConfigurationError, Settings, load, with_local_defaults
from server.embedded.processes import EmbeddedServerError
from server.embedded.servers import EmbeddedServers
from server.observability.logging import configure

CHECK_INTERVAL_SECONDS = 1.0
# Beyond LAME_DUCK: running calls, the delivery in progress, the pools.
DRAIN_TIMEOUT = timedelta(seconds=20)
log = structlog.get_logger()


def main(mode: str) -> None:
    """Run the workers until a signal; exit with 0 if all of them ended well."""
    try:
        ended_well = _serve() if mode == "serve" else _up()
    except (
        ConfigurationError,
        CannotListen,
        EmbeddedServerError,
        WorkerFailed,
    ) as error:
        typer.secho(str(error), err=True, fg=typer.colors.RED)
        ended_well = False
    sys.exit(0 if ended_well else 1)


def _serve() -> bool:
    settings = load()
    configure(settings.log_level, settings.log_format)

    def announce(grpc_address: str, http_address: str) -> None:
        log.info(
            "listening",
            grpc=grpc_address,
            http=http_address,
            workers=settings.workers,
        )

    with _sockets(settings) as (grpc, http):
        return asyncio.run(_supervise(settings, grpc, http, announce))


def _up() -> bool:
    settings = with_local_defaults(load())
    configure(settings.log_level, settings.log_format)
    servers = EmbeddedServers(settings.state_dir)
    try:
        settings = start_embedded_servers(settings, servers)
        _migrate()
        announce = partial(print_banner, settings)
        with _sockets(settings) as (grpc, http):
            return asyncio.run(
                _supervise(settings, grpc, http, announce, "--up", check=servers.check)
            )
    finally:
        servers.stop()


def _migrate() -> None:
    """Upgrade the schema, in a process of its own. Raises EmbeddedServerError."""
    command = [*interpreter(), "-m", "server", "migrate"]
    result = subprocess.run(  # noqa: S603 - this program
        command, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise EmbeddedServerError(result.stderr.strip())


@contextmanager
def _sockets(settings: Settings) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Bind the addresses of gRPC and HTTP; no worker has to know whether they are free.

    The socket of gRPC reserves the port. Each worker listens on it by SO_REUSEPORT.
    """
    with (
        reserve_grpc_port(settings.grpc_listen) as grpc,
        bind_http(settings.http_listen) as http,
    ):
        yield grpc, http


async def _supervise(
    settings: Settings,
    grpc: socket.socket,
    http: socket.socket,
    announce: Callable[[str, str], None],
    *arguments: str,
    check: Callable[[], None] | None = None,
) -> bool:
    """Run the supervisor; return whether all workers ended well."""
    grpc_address = bound_address(settings.grpc_listen, grpc)
    http_address = bound_address(settings.http_listen, http)
    supervisor = Supervisor(
        partial(WorkerProcess.start, (*arguments, "--grpc-listen", grpc_address), http),
        assignments(settings.workers),
        settings.lame_duck + DRAIN_TIMEOUT,
    )
    _handle_signals(supervisor)
    checks = asyncio.create_task(_check_regularly(check, supervisor))
    try:
        ended_well = await supervisor.run(partial(announce, grpc_address, http_address))
    finally:
        checks.cancel()
    if checks.done() and not checks.cancelled():
        checks.result()  # raises what the check raised
    return ended_well


async def _check_regularly(
    check: Callable[[], None] | None, supervisor: Supervisor
) -> None:
    """Call `check` every second; stop the workers when it raises."""
    while check:
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


if __name__ == "__main__":
    main(sys.argv[1])
