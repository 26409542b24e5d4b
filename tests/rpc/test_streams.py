"""Server streams through the chain, on both ports: each end is sent and logged."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import structlog

from blatam.policy.v1.policy_pb2 import Access, MethodPolicy
from blatam.user.v1 import user_pb2 as pb
from edge.http.trusted_proxies import TrustedProxies
from edge.port import CallError, CallPort, RemotePort, Reply
from edge.stepping import start
from edge.timers import SharedTimer
from server.composition.listeners.serving import listening_grpc
from server.domain.audit import AuditEvent, AuditFilter
from server.domain.errors import UserNotFound
from server.observability.logging import add_context
from server.observability.metrics.calls import CallMetrics
from server.rpc.call import Call, Method, Outcome, Stream, wrap_handler
from server.rpc.deadlines import TIMER_INTERVAL
from server.rpc.grpc_messages import MessageChannel
from server.rpc.grpc_server import build_grpc_server
from server.rpc.interceptors.audit import audit_calls
from server.rpc.interceptors.errors import map_errors
from server.rpc.interceptors.logging import call_labels, record_calls
from server.rpc.listener import Listener
from server.rpc.local import LocalPort
from tests.fakes import Clock

TIMER = SharedTimer(TIMER_INTERVAL)
MESSAGES = MessageChannel(TIMER)

PATH = "/t.Streams/Count"
METHOD = Method(
    PATH,
    pb.GetUserRequest,
    MethodPolicy(access=Access.ACCESS_PUBLIC, audit="numbers.counted"),
    streams=True,
)
KIB = 1024


@dataclass(slots=True)
class Events:
    """An audit log in memory."""

    outcomes: list[str] = field(default_factory=list)

    async def add(self, event: AuditEvent) -> None:
        await asyncio.sleep(0)
        self.outcomes.append(event.outcome)

    def add_later(self, event: AuditEvent) -> None:
        raise NotImplementedError  # for calls that are no streams

    async def page(
        self, wanted: AuditFilter, before: int | None, size: int
    ) -> list[AuditEvent]:
        raise NotImplementedError  # streams read no events


@dataclass(slots=True)
class NumberStream:
    """A stream of numbers; `then` runs after the last."""

    count: int
    then: Callable[[], Awaitable[None]] | None = None
    size: int = 1
    produced: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, _call: Call) -> Outcome:
        return self._numbers()

    async def _numbers(self) -> Stream:
        try:
            for number in range(self.count):
                self.produced += 1
                yield b"%d" % number + b" " * (self.size - 1)
            if self.then:
                await self.then()
        finally:
            self.closed.set()


@asynccontextmanager
async def ports(
    source: NumberStream, events: Events
) -> AsyncIterator[dict[str, CallPort]]:
    """Serve a source by gRPC and in process."""
    audit = audit_calls(METHOD, events, Clock())
    assert audit
    record = record_calls(METHOD, CallMetrics.of([call_labels(METHOD)]))
    served = {
        PATH: (METHOD, wrap_handler([record, audit, map_errors(TIMER, start)], source))
    }
    server = build_grpc_server(Listener(TrustedProxies(()), MESSAGES).handlers(served))
    async with (
        listening_grpc(server, "127.0.0.1:0") as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", STEADY) as channel,
    ):
        local = LocalPort(
            served, TrustedProxies(()), CallMetrics.of(), Reply, CallError
        )
        yield {"grpc": RemotePort(channel), "local": local}


# A client whose window does not grow: else the wire holds as much as gRPC believes
# that the network does, which on a busy machine is tens of MiB.
STEADY = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * KIB))


def messages(port: CallPort, timeout: float | None = 30) -> AsyncGenerator[bytes, None]:
    reply: Any = port.server_stream(PATH, b"", metadata=(), timeout=timeout)
    stream: AsyncGenerator[bytes, None] = aiter(reply)
    return stream


async def read(port: CallPort, got: list[bytes], seconds: float = 30) -> None:
    async for message in messages(port, seconds):
        got.append(message)  # noqa: PERF401 - what came before a failure counts


async def line(lines: list[Any]) -> dict[str, Any]:
    """Return the log line of the call, once it is written."""
    calls: list[Any] = []
    async with asyncio.timeout(10):
        while not calls:
            await asyncio.sleep(0.001)
            calls = [entry for entry in lines if entry["event"] == "call"]
    assert len(calls) == 1
    return dict(calls[0])


async def outcome(events: Events) -> str:
    """Return the outcome in the audit log, once it is written."""
    async with asyncio.timeout(10):
        while not events.outcomes:  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.001)
    assert len(events.outcomes) == 1
    return events.outcomes[0]


def capture() -> Any:
    return structlog.testing.capture_logs([add_context])


@pytest.mark.parametrize("name", ["grpc", "local"])
async def test_stream_end_is_logged_with_message_count(name: str) -> None:
    """One line and one audit event, at the end."""
    source, events = NumberStream(3), Events()
    async with ports(source, events) as served_ports:
        with capture() as lines:
            got = [message async for message in messages(served_ports[name])]
            ended = await line(lines)
    assert got == [b"0", b"1", b"2"]
    assert (ended["code"], ended["sent"]) == ("OK", 3)
    assert ended["request_id"]
    assert await outcome(events) == "OK"


@pytest.mark.parametrize("name", ["grpc", "local"])
async def test_stream_error_after_messages_reaches_caller(name: str) -> None:
    """After two messages: a status with its details."""

    async def refuse() -> None:
        raise UserNotFound(7)

    source, events = NumberStream(2, refuse), Events()
    async with ports(source, events) as served_ports:
        got: list[bytes] = []
        with capture() as lines:
            with pytest.raises(CallError) as caught:
                await read(served_ports[name], got)
            ended = await line(lines)
    assert got == [b"0", b"1"]
    assert caught.value.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert b"USER_NOT_FOUND" in caught.value.status
    assert dict(caught.value.trailers)["x-request-id"] == ended["request_id"]
    logged_end = (ended["code"], ended["reason"], ended["sent"])
    assert logged_end == ("NOT_FOUND", "USER_NOT_FOUND", 2)
    assert await outcome(events) == "USER_NOT_FOUND"


@pytest.mark.parametrize("name", ["grpc", "local"])
async def test_stream_ends_at_deadline(name: str) -> None:
    """The generator is cancelled; the caller gets DEADLINE_EXCEEDED."""

    async def forever() -> None:
        await asyncio.sleep(60)

    source, events = NumberStream(1, forever), Events()
    async with ports(source, events) as served_ports:
        with pytest.raises(CallError) as caught:
            await read(served_ports[name], [], seconds=0.2)
        assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        async with asyncio.timeout(10):
            await source.closed.wait()


@pytest.mark.parametrize("name", ["grpc", "local"])
async def test_stream_generator_is_closed_when_caller_cancels(name: str) -> None:
    """Its `finally` runs at once; the log says CANCELLED."""

    async def forever() -> None:
        await asyncio.sleep(60)

    source, events = NumberStream(2, forever), Events()
    async with ports(source, events) as served_ports:
        with capture() as lines:
            async with aclosing(messages(served_ports[name])) as stream:
                assert await anext(stream) == b"0"
            async with asyncio.timeout(10):
                await source.closed.wait()
            ended = await line(lines)
    assert ended["code"] == "CANCELLED"
    assert await outcome(events) == "CANCELLED"


@pytest.mark.parametrize("name", ["grpc", "local"])
async def test_stream_waits_for_slow_reader(name: str) -> None:
    """Messages are produced as they are read, apart from those in transit."""
    most = 1_000
    source, events = NumberStream(most, size=64 * KIB), Events()
    async with ports(source, events) as served_ports:
        async with aclosing(messages(served_ports[name])) as stream:
            assert await anext(stream)
            before = -1
            while source.produced != before:
                before = source.produced
                await asyncio.sleep(0.05)
            assert source.produced < 20
        async with asyncio.timeout(10):
            await source.closed.wait()
        assert await outcome(events) == "CANCELLED"
