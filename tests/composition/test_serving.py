"""Listening: the error for an address that cannot be bound names the cause."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI

from server.composition.listeners.metrics import listening_metrics
from server.composition.listeners.serving import listening_grpc, listening_http
from server.composition.listeners.sockets import (
    CannotListen,
    bind_http,
    reserve_grpc_port,
)
from server.composition.listeners.stopping import stopping_together, until_stopped
from server.rpc.grpc_server import build_grpc_server

FOREIGN = "192.0.2.1:50051"  # RFC 5737: no interface has this address


async def listen(setting: str, address: str) -> None:
    """Listen on an address for a moment, by the protocol of a setting."""
    if setting == "HTTP_LISTEN":
        bind_http(address).close()
    else:
        async with listening_grpc(build_grpc_server([]), address):
            pass


@pytest.mark.parametrize("setting", ["GRPC_LISTEN", "HTTP_LISTEN"])
async def test_listening_names_why_an_address_cannot_be_bound(setting: str) -> None:
    """An address of another machine is not reported as a port that is taken."""
    with pytest.raises(CannotListen) as error:
        await listen(setting, FOREIGN)
    assert str(error.value) == (
        f"cannot listen on {FOREIGN}: Cannot assign requested address; "
        f"set {setting}=ADDRESS:PORT"
    )


@pytest.mark.parametrize("setting", ["GRPC_LISTEN", "HTTP_LISTEN"])
async def test_listening_names_a_port_that_is_taken(setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(CannotListen) as error:
            await listen(setting, address)
    assert str(error.value) == (
        f"cannot listen on {address}: Address already in use; "
        f"stop the other process, or set {setting}=ADDRESS:PORT"
    )


async def test_port_that_is_bound_twice_is_named() -> None:
    """SO_REUSEADDR allows that until one of the sockets listens."""
    with bind_http("127.0.0.1:0") as first:
        address = f"127.0.0.1:{first.getsockname()[1]}"
        with bind_http(address) as second:
            first.listen()
            with pytest.raises(CannotListen, match="HTTP_LISTEN=ADDRESS:PORT"):
                async with listening_http(FastAPI(), second, asyncio.Protocol):
                    pass
            second.close()
            with pytest.raises(CannotListen, match=f"cannot listen on {address}: "):
                async with listening_metrics(address, render_nothing):
                    pass


async def render_nothing() -> bytes:
    return b""


async def test_listeners_stop_together() -> None:
    """While slow calls of one end, the other must not accept new ones."""
    stopping = {"grpc": asyncio.Event(), "http": asyncio.Event()}

    @asynccontextmanager
    async def listener(name: str, other: str) -> AsyncIterator[str]:
        try:
            yield name
        finally:
            stopping[name].set()
            await stopping[other].wait()

    async with asyncio.timeout(10):
        pair = stopping_together(listener("grpc", "http"), listener("http", "grpc"))
        async with pair as names:
            assert names == ("grpc", "http")


async def test_first_listener_stops_when_the_second_cannot_start() -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def first() -> AsyncIterator[None]:
        try:
            yield
        finally:
            steps.append("stopped")

    @asynccontextmanager
    async def second() -> AsyncIterator[None]:
        raise CannotListen("HTTP_LISTEN", "127.0.0.1:1", OSError("taken"))
        yield

    with pytest.raises(CannotListen):
        async with stopping_together(first(), second()):
            pass
    assert steps == ["stopped"]


def test_port_is_refused_although_its_owner_shares_it() -> None:
    """Workers share a port by SO_REUSEPORT; a second supervisor must not join them."""
    with reserve_grpc_port("127.0.0.1:0") as first:
        address = f"127.0.0.1:{first.getsockname()[1]}"
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(first.getsockname())
            worker.listen()
            with pytest.raises(CannotListen, match="Address already in use"):
                reserve_grpc_port(address)


@pytest.mark.parametrize("supervised", [True, False])
async def test_further_signal_ends_only_a_process_without_supervisor(
    supervised: bool,
) -> None:
    """A process manager and the supervisor may both signal a worker."""
    stopping = asyncio.ensure_future(until_stopped(supervised=supervised))
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGTERM)
    await stopping
    ends_the_process = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert ends_the_process is not supervised
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)
