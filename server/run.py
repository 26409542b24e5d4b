"""Listening: gRPC and REST in one process and one loop, until told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import grpc
import structlog
import uvicorn
from fastapi import FastAPI

log = structlog.get_logger()
SECONDS_TO_FINISH = 10.0
SECONDS_BETWEEN_CHECKS = 1.0
BACKLOG = 2048


def in_long_slices() -> None:
    """Let this process work in long slices, where the system can (Linux).

    gRPC's own threads interrupt the loop at each message otherwise. Call it before
    gRPC starts them. The cost is some latency beside a busy neighbour.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class AddressInUse(Exception):
    """Something else listens where we should."""

    def __init__(self, setting: str, address: str, cause: str) -> None:
        super().__init__(
            f"cannot listen on {address}: {cause}; "
            f"stop what does, or set {setting}=HOST:PORT"
        )


@asynccontextmanager
async def listening_grpc(server: grpc.aio.Server, address: str) -> AsyncIterator[int]:
    """Serve gRPC; gives the port. Calls in flight may finish when the block ends."""
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise AddressInUse("GRPC_LISTEN", address, "the port is taken") from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(SECONDS_TO_FINISH)


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us: one place decides when everything stops."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


@asynccontextmanager
async def listening_http(
    app: FastAPI, address: str, protocol: type[asyncio.Protocol]
) -> AsyncIterator[int]:
    """Serve HTTP; gives the port. Requests in flight may finish when the block ends."""
    listener = _bound(address)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        http=protocol,
        ws="none",
        timeout_graceful_shutdown=int(SECONDS_TO_FINISH),
    )
    server = _Uvicorn(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


def _bound(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
    except OSError as error:
        listener.close()
        raise AddressInUse("HTTP_LISTEN", address, str(error.strerror)) from error
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


async def until_stopped(
    drain: Callable[[], Awaitable[None]] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Wait for SIGTERM or SIGINT, then drain; a second signal ends the process.

    Every second `check` is asked; what it raises ends the wait.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    while not stopped.is_set():
        if check:
            check()
        with suppress(TimeoutError):
            async with asyncio.timeout(SECONDS_BETWEEN_CHECKS):
                await stopped.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    log.info("stopping")
    if drain:
        await drain()
