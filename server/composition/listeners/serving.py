"""Listening sockets of gRPC and REST on one event loop."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import (
    asynccontextmanager,
    suppress,
)
from datetime import timedelta

import grpc
import uvicorn
from fastapi import FastAPI

from server.composition.listeners.http_server import HttpServer
from server.composition.listeners.sockets import (
    CannotListen,
    check_grpc_address,
    listen,
)

STOP_TIMEOUT_SECONDS = 10.0
BACKLOG = 2048


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
