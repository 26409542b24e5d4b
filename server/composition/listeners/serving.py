"""Listening sockets of gRPC and REST on one event loop, and signals that stop them."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from datetime import timedelta
from functools import partial
from typing import TypeVar, cast

import grpc
import structlog
import uvicorn
from fastapi import FastAPI

from server.composition.listeners.sockets import (
    CannotListen,
    check_grpc_address,
    listen,
)

log = structlog.get_logger()
STOP_TIMEOUT_SECONDS = 10.0
CHECK_INTERVAL_SECONDS = 1.0
BACKLOG = 2048
TLS_TIMEOUT_SECONDS = 10.0  # for a handshake, as for the headers of a request
First = TypeVar("First")
Second = TypeVar("Second")


def use_batch_scheduling() -> None:
    """Run this process under SCHED_BATCH where there is one (Linux).

    Otherwise gRPC's threads preempt the event loop at each message. Call it before
    gRPC starts them. The cost is some latency beside other busy processes.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


@asynccontextmanager
async def listening_grpc(
    server: grpc.aio.Server,
    address: str,
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[int]:
    """Serve gRPC, over TLS if there are credentials; return the port.

    Calls in flight may finish when the block ends.
    """
    try:
        if credentials:
            port = server.add_secure_port(address, credentials)
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:  # grpc does not name the cause: bind again for it
        check_grpc_address(address)
        cause = OSError("gRPC cannot bind the address")
        raise CannotListen("GRPC_LISTEN", address, cause) from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(STOP_TIMEOUT_SECONDS)


class HttpServer(uvicorn.Server):
    """A server of bound sockets. It handles no signals: `until_stopped` does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn does, but with limits for the two ends of TLS.

        asyncio would wait for 60 seconds for a handshake, and 30 for a client to
        confirm that the connection has ended.
        """
        await self.lifespan.startup()
        config, loop = self.config, asyncio.get_running_loop()
        protocol = partial(
            cast("Callable[..., asyncio.Protocol]", config.http_protocol_class),
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        limit = TLS_TIMEOUT_SECONDS if config.ssl else None
        self.servers = [
            await loop.create_server(
                protocol,
                sock=listener,
                ssl=config.ssl,
                backlog=config.backlog,
                ssl_handshake_timeout=limit,
                ssl_shutdown_timeout=limit,
            )
            for listener in sockets or ()
        ]
        self.started = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handler."""
        yield

    def close_connections(self) -> None:
        """Send `connection: close` with each response from now on.

        Clients that keep connections open leave before the listener closes.
        """
        header = (b"connection", b"close")
        self.config.encoded_headers.append(header)  # read once a second
        self.server_state.default_headers = [
            *self.server_state.default_headers,
            header,
        ]


@asynccontextmanager
async def listening_http(
    app: FastAPI,
    listener: socket.socket,
    protocol: type[asyncio.Protocol],
    keep_alive: timedelta = timedelta(seconds=75),
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[HttpServer]:
    """Serve HTTP on a bound socket, HTTPS with a context.

    Requests in flight may finish after the block.

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
        ssl_context_factory=(lambda *_: ssl_context) if ssl_context else None,
    )
    server = HttpServer(config)
    listen("HTTP_LISTEN", listener, BACKLOG)
    listener.setblocking(False)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield server
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def stopping_together(
    first: AbstractAsyncContextManager[First],
    second: AbstractAsyncContextManager[Second],
) -> AsyncIterator[tuple[First, Second]]:
    """Enter both in order; leave both at the same time, so that one timeout bounds it.

    Listeners that stop one after the other would take twice the time for slow calls,
    and the second would accept calls while the first refuses them.
    """
    entered = await first.__aenter__()
    try:
        values = entered, await second.__aenter__()
    except BaseException:
        await first.__aexit__(*sys.exc_info())
        raise
    try:
        yield values
    finally:
        ended = sys.exc_info()
        await asyncio.gather(first.__aexit__(*ended), second.__aexit__(*ended))


async def until_stopped(
    check: Callable[[], None] | None = None,
    stopped: asyncio.Event | None = None,
    *,
    supervised: bool = False,
) -> None:
    """Wait for SIGTERM, SIGINT or `stopped`; a signal after that ends the process.

    A `supervised` process ignores it: a process manager signals every process of a
    service, and then so does the supervisor, which ends a process that hangs.
    `check` is called every second; an exception it raises ends the wait.
    """
    loop = asyncio.get_running_loop()
    stopped = stopped or asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    while not stopped.is_set():
        if check:
            check()
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_INTERVAL_SECONDS):
                await stopped.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        if supervised:
            loop.add_signal_handler(number, lambda: None)
        else:
            loop.remove_signal_handler(number)
    log.info("stopping")
