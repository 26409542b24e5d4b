"""Hostile bytes on the gRPC port: bounded cost, and other clients are served (R35).

Time runs faster than in production: the tests shorten the same limits.
"""

import asyncio
import resource
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blatam.policy.v1.policy_pb2 import Access, MethodPolicy
from blatam.user.v1 import user_pb2 as pb
from edge.http.trusted_proxies import TrustedProxies
from edge.stepping import start
from edge.timers import SharedTimer
from server.composition.listeners.serving import listening_grpc
from server.rpc import grpc_server
from server.rpc.call import Call, Method, Outcome, Stream, wrap_handler
from server.rpc.deadlines import TIMER_INTERVAL
from server.rpc.grpc_messages import MessageChannel
from server.rpc.interceptors.errors import map_errors
from server.rpc.listener import Listener
from server.rpc.standard_services.health import Health
from server.rpc.standard_services.health_servicer import MAX_WATCHES_PER_CONNECTION
from tests.rpc.http2 import (
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Connection,
    call_headers,
    connected,
    frame,
    message,
)

UNARY, STREAM = "/t.S/Unary", "/t.S/Stream"
POLICY = MethodPolicy(access=Access.ACCESS_PUBLIC)
TIMER = SharedTimer(TIMER_INTERVAL)
MIB = 1024 * 1024
RESETS = 10_000
SHORT = 300  # milliseconds
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(slots=True)
class Service:
    """A running server that counts its handlers."""

    address: str = ""
    started: int = 0
    running: int = 0
    stream_closed: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def unary(self, _call: Call) -> Outcome:
        self.started += 1
        self.running += 1
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        return b"ok"

    async def stream(self, _call: Call) -> Outcome:
        return self._messages()

    async def _messages(self) -> Stream:
        try:
            while True:
                yield b"x" * 10_000
        finally:
            self.stream_closed.set()

    async def idle(self) -> None:
        """Wait until no handler runs."""
        async with asyncio.timeout(10):
            while self.running:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)

    async def serves_others(self) -> None:
        """Fail unless another client has an answer."""
        self.gate.set()
        async with grpc.aio.insecure_channel(self.address) as channel:
            call: Any = channel.unary_unary(UNARY)
            # the server may not have noticed yet that others have closed
            assert await call(b"", timeout=10, wait_for_ready=True) == b"ok"


@asynccontextmanager
async def serving(
    monkeypatch: pytest.MonkeyPatch, max_connections: int = 100, **options: int
) -> AsyncIterator[Service]:
    """Serve with some of gRPC's options changed, and short deadlines of messages."""
    changed = {name.replace("__", "."): value for name, value in options.items()}
    assert changed.keys() <= dict(grpc_server.OPTIONS).keys()
    options_ = tuple((dict(grpc_server.OPTIONS) | changed).items())
    monkeypatch.setattr(grpc_server, "OPTIONS", options_)
    service = Service()
    served = {
        path: (
            Method(path, pb.GetUserRequest, POLICY, streams=handler != service.unary),
            wrap_handler([map_errors(TIMER, start)], handler),
        )
        for path, handler in ((UNARY, service.unary), (STREAM, service.stream))
    }
    messages = MessageChannel(TIMER, receipt_timeout=0.3, read_timeout=0.3)
    listener = Listener(TrustedProxies(()), messages)
    server = grpc_server.build_grpc_server(listener.handlers(served), max_connections)
    async with listening_grpc(server, "127.0.0.1:0") as port:
        service.address = f"127.0.0.1:{port}"
        try:
            yield service
        finally:
            service.gate.set()


def memory() -> int:
    """Return the highest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def call(path: str, stream: int, body: bytes = message(b"")) -> bytes:
    """Return the frames of a call."""
    return frame(HEADERS, call_headers(path), END_HEADERS, stream) + frame(
        DATA, body, END_STREAM, stream
    )


FIRST_BYTES = {
    "nothing": b"",
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "part of the preface": PREFACE[:10],
    "no settings": PREFACE,
    "part of the settings": PREFACE + frame(SETTINGS, b"\0" * 60)[:20],
}


@pytest.mark.parametrize("first", FIRST_BYTES)
async def test_missing_preface_closes_the_connection(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R35: the first bytes of a connection have a deadline."""
    async with (
        serving(monkeypatch, grpc__server_handshake_timeout_ms=SHORT) as service,
        connected(service.address) as connection,
    ):
        await connection.write(FIRST_BYTES[first])
        await connection.closed()
        await service.serves_others()


async def test_truncated_frame_closes_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R35: a client in the middle of a frame cannot answer the server's pings."""
    options = {"grpc__keepalive_time_ms": 1000, "grpc__http2__ping_timeout_ms": SHORT}
    async with (
        serving(monkeypatch, **options) as service,
        connected(service.address) as connection,
    ):
        await connection.begin()
        headers = frame(HEADERS, call_headers(UNARY), END_HEADERS, 1)
        await connection.write(headers[:-10])
        connection.answers_pings = False
        await connection.closed()
        assert not service.started
        await service.serves_others()


async def test_half_open_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that has vanished answers no ping; its call is cancelled."""
    options = {"grpc__keepalive_time_ms": 1000, "grpc__http2__ping_timeout_ms": SHORT}
    async with (
        serving(monkeypatch, **options) as service,
        connected(service.address) as connection,
    ):
        connection.answers_pings = False
        await connection.begin()
        await connection.write(call(UNARY, 1))
        await connection.closed()
        await service.idle()
        assert service.started == 1


async def test_request_that_does_not_arrive_ends_its_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R35: half a message, and none; no handler starts, the connection stays."""
    async with (
        serving(monkeypatch) as service,
        connected(service.address) as connection,
    ):
        await connection.begin()
        headers = frame(HEADERS, call_headers(UNARY), END_HEADERS, 1)
        await connection.write(headers, frame(DATA, message(b"x", size=100), 0, 1))
        await connection.write(frame(HEADERS, call_headers(STREAM), END_HEADERS, 3))
        trailers = [await _trailers(connection, stream) for stream in (1, 3)]
        assert all(b"did not arrive within 0.3 s" in each for each in trailers)
        assert not service.started
        await connection.write(call(UNARY, 5))
        service.gate.set()
        assert b"grpc-status" in await _trailers(connection, 5)


async def test_request_without_message_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client has ended its side of the call."""
    async with (
        serving(monkeypatch) as service,
        connected(service.address) as connection,
    ):
        await connection.begin()
        flags = END_HEADERS | END_STREAM
        await connection.write(frame(HEADERS, call_headers(UNARY), flags, 1))
        assert b"without a request message" in await _trailers(connection, 1)
        assert not service.started


async def _trailers(connection: Connection, stream: int) -> bytes:
    """Return the last headers of a stream, once it has ended."""
    async with asyncio.timeout(10):
        while True:
            for each in connection.frames:
                ends = each.kind == HEADERS and each.flags & END_STREAM
                if ends and each.stream == stream:
                    return each.payload
            await asyncio.sleep(0.01)


async def test_rapid_resets_start_few_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """R35 (CVE-2023-44487): 10,000 calls that are reset at once cost little."""
    async with (
        serving(monkeypatch) as service,
        connected(service.address) as connection,
    ):
        await connection.begin()
        await service.serves_others()
        service.gate.clear()
        before, started = memory(), service.started
        with suppress(ConnectionError):
            for number in range(1, 2 * RESETS, 2):
                reset = frame(RST_STREAM, CANCEL, 0, number)
                await connection.write(call(UNARY, number) + reset)
        await service.serves_others()
        assert service.started - started < RESETS / 10
        assert memory() - before < 50 * MIB
        await service.idle()


async def test_endless_headers_close_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R34: CONTINUATION frames without an end are not collected."""
    async with (
        serving(monkeypatch) as service,
        connected(service.address) as connection,
    ):
        await connection.begin()
        before = memory()
        part = call_headers(UNARY, ("x", "y" * 4000))
        with suppress(ConnectionError):
            await connection.write(frame(HEADERS, part, 0, 1))
            for _ in range(10_000):
                await connection.write(frame(CONTINUATION, part, 0, 1))
        assert memory() - before < 50 * MIB
        assert not service.started
        await service.serves_others()


async def test_large_metadata_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """R34: one call with 200 KiB of headers."""
    async with (
        serving(monkeypatch) as service,
        connected(service.address) as connection,
    ):
        await connection.begin()
        part = call_headers(UNARY, *((f"x-{n}", "y" * 4000) for n in range(4)))
        frames = [frame(HEADERS, part, END_STREAM, 1)]
        frames += [frame(CONTINUATION, part, 0, 1) for _ in range(10)]
        with suppress(ConnectionError):
            await connection.write(*frames, frame(CONTINUATION, b"", END_HEADERS, 1))
        await asyncio.sleep(0.2)
        assert not service.started
        await service.serves_others()


async def test_flood_of_pings_closes_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R35: a client may not make the server answer as fast as it can."""
    async with (
        serving(monkeypatch) as service,
        connected(service.address) as connection,
    ):
        await connection.begin()
        with suppress(ConnectionError):
            await connection.write(frame(PING, b"12345678") * 1_000)
        await connection.received(GOAWAY)
        await connection.closed()
        await service.serves_others()


async def test_flood_of_settings_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """R35: a client that does not read the acknowledgements is no longer read."""
    async with (
        serving(monkeypatch) as service,
        connected(service.address) as connection,
    ):
        await connection.begin()
        connection.stop_reading()
        before, settings = memory(), frame(SETTINGS, struct.pack(">HI", 3, 100))
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(1):
                for _ in range(100_000):
                    await connection.write(settings * 100)
        await service.serves_others()
        assert memory() - before < 50 * MIB


async def test_client_that_does_not_read_ends_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R35: a client that answers pings and opens no window holds no stream."""
    async with (
        serving(monkeypatch) as service,
        connected(service.address) as connection,
    ):
        await connection.begin((INITIAL_WINDOW_SIZE, 1_000))
        await connection.write(call(STREAM, 1))
        async with asyncio.timeout(10):
            await service.stream_closed.wait()
        await service.serves_others()


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """R35: one more is closed at once; it is served when another has ended."""
    async with serving(monkeypatch, max_connections=2) as service:
        async with (
            connected(service.address) as first,
            connected(service.address) as second,
        ):
            for connection in (first, second):
                await connection.begin()
                await connection.received(SETTINGS)
            async with connected(service.address) as third:
                await third.closed()
        await service.serves_others()


async def test_calls_of_one_connection_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R35: more calls than the server has announced start no handler."""
    async with (
        serving(monkeypatch) as service,
        connected(service.address) as connection,
    ):
        await connection.begin()
        with suppress(ConnectionError):
            for number in range(1, 2_001, 2):
                await connection.write(call(UNARY, number))
        await asyncio.sleep(0.3)
        assert service.started <= grpc_server.MAX_CALLS_PER_CONNECTION
        await service.serves_others()


async def test_disconnected_client_cancels_its_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Work for a client that has left ends: of a unary call and of a stream."""
    async with (
        serving(monkeypatch) as service,
        connected(service.address) as connection,
    ):
        await connection.begin()
        await connection.write(call(UNARY, 1), call(STREAM, 3))
        async with asyncio.timeout(10):
            while not service.running:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        connection.abort()
        await service.idle()
        async with asyncio.timeout(10):
            await service.stream_closed.wait()


async def test_health_watch_that_is_not_read_blocks_no_other() -> None:
    """R35: neither a new status, which a drain waits for, nor another client."""

    async def ping() -> None:
        return None

    health = Health(ping, ["t.S"])
    server = grpc_server.build_grpc_server([])
    health.add_to(server)
    check = health_pb2.HealthCheckRequest()
    async with listening_grpc(server, "127.0.0.1:0") as port, AsyncExitStack() as stack:
        address = f"127.0.0.1:{port}"
        unread = await stack.enter_async_context(connected(address))
        await unread.begin((INITIAL_WINDOW_SIZE, 0))
        for number in range(1, 2 * MAX_WATCHES_PER_CONNECTION + 3, 2):
            await unread.write(call("/grpc.health.v1.Health/Watch", number))
        last = 2 * MAX_WATCHES_PER_CONNECTION + 1
        assert b"too many Watch streams" in await _trailers(unread, last)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(check)
        async with asyncio.timeout(10):
            assert (await watch.read()).status == NOT_SERVING
            await health.refresh()
            assert (await watch.read()).status == SERVING
            await health.drain()
            assert (await watch.read()).status == NOT_SERVING
        await health.end_watches()
        unread.abort()
