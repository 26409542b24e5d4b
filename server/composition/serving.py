"""Listening sockets of gRPC and REST on one event loop, and signals that stop them."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import grpc
import structlog
import uvicorn
from fastapi import FastAPI

log = structlog.get_logger()
STOP_TIMEOUT_SECONDS = 10.0
CHECK_INTERVAL_SECONDS = 1.0
BACKLOG = 2048


def use_batch_scheduling() -> None:
    """Run this process under SCHED_BATCH where there is one (Linux).

    Otherwise gRPC's threads preempt the event loop at each message. Call it before
    gRPC starts them. The cost is some latency beside other busy processes.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class CannotListen(Exception):
    """The address of a setting cannot be bound; the message names the cause."""

    def __init__(self, setting: str, address: str, error: OSError) -> None:
        is_taken = error.errno == errno.EADDRINUSE
        advice = "stop the other process, or set" if is_taken else "set"
        super().__init__(
            f"cannot listen on {address}: {error.strerror or error}; "
            f"{advice} {setting}=ADDRESS:PORT"
        )


@asynccontextmanager
async def listening_grpc(server: grpc.aio.Server, address: str) -> AsyncIterator[int]:
    """Serve gRPC; return the port. Calls in flight may finish when the block ends."""
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:  # grpc does not name the cause: bind again for it
        _bound("GRPC_LISTEN", address).close()
        cause = OSError("gRPC cannot bind it")
        raise CannotListen("GRPC_LISTEN", address, cause) from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(STOP_TIMEOUT_SECONDS)


class _Uvicorn(uvicorn.Server):
    """A server that handles no signals: `until_stopped` does."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handler."""
        yield


@asynccontextmanager
async def listening_http(
    app: FastAPI,
    listener: socket.socket,
    protocol: type[asyncio.Protocol],
    keep_alive: timedelta = timedelta(seconds=75),
) -> AsyncIterator[None]:
    """Serve HTTP on a bound socket. Requests in flight may finish after the block.

    An idle connection is closed after `keep_alive`, which should be longer than a
    proxy in front keeps it: else the proxy sends a request into a closed one.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        http=protocol,
        ws="none",
        timeout_keep_alive=math.ceil(keep_alive.total_seconds()),
        timeout_graceful_shutdown=int(STOP_TIMEOUT_SECONDS),
    )
    server = _Uvicorn(config)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


def bind_http(address: str) -> socket.socket:
    """Return a socket bound to the address of HTTP_LISTEN. Raises CannotListen."""
    return _bound("HTTP_LISTEN", address)


def bind_metrics(address: str) -> socket.socket:
    """Return a socket bound to HOST:PORT or unix:PATH. Raises CannotListen."""
    if not address.startswith("unix:"):
        return _bound("METRICS_LISTEN", address)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = Path(address.removeprefix("unix:"))
    try:
        path.unlink(missing_ok=True)  # of a process that was killed
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise CannotListen("METRICS_LISTEN", address, error) from error
    return listener


def _bound(setting: str, address: str) -> socket.socket:
    """Return a socket bound to the address. Raises CannotListen."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
    except OSError as error:
        listener.close()
        raise CannotListen(setting, address, error) from error
    return listener


async def until_stopped(
    drain: Callable[[], Awaitable[None]] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Wait for SIGTERM or SIGINT, then drain; a second signal ends the process.

    `check` is called every second; an exception it raises ends the wait.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    while not stopped.is_set():
        if check:
            check()
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_INTERVAL_SECONDS):
                await stopped.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    log.info("stopping")
    if drain:
        await drain()
