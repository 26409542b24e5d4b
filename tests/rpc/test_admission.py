"""Limits of calls in flight: the same refusal on every transport (R35)."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from blatam.policy.v1.policy_pb2 import Access, MethodPolicy
from blatam.user.v1 import user_pb2 as pb
from edge.http.trusted_proxies import TrustedProxies
from edge.port import CallError, CallPort, RemotePort, Reply
from edge.remote.batching import BatchingPort
from edge.stepping import start
from edge.timers import SharedTimer
from server.composition.listeners.serving import listening_grpc
from server.domain.callers import Caller
from server.domain.errors import Overloaded
from server.observability.metrics.calls import CallMetrics
from server.rpc.batching.call import call_executor
from server.rpc.batching.stream import BatchingServicer
from server.rpc.call import Call, Method, Outcome, Proceed, Stream, wrap_handler
from server.rpc.deadlines import TIMER_INTERVAL
from server.rpc.grpc_messages import MessageChannel
from server.rpc.grpc_server import build_grpc_server
from server.rpc.interceptors.admission import (
    MAX_CALLS,
    MAX_CALLS_WHILE_LATE,
    MAX_LAG_SECONDS,
    MAX_STREAMS,
    MAX_STREAMS_PER_CALLER,
    Admission,
    limit_calls,
)
from server.rpc.interceptors.errors import map_errors
from server.rpc.listener import Listener
from server.rpc.local import LocalPort

UNARY, STREAM = "/t.S/Unary", "/t.S/Stream"
POLICY = MethodPolicy(access=Access.ACCESS_PUBLIC)
TIMER = SharedTimer(TIMER_INTERVAL)
NO_PROXIES = TrustedProxies(())
DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED = 4, 8  # google.rpc.Code


@dataclass(slots=True)
class Service:
    """A service of two RPCs that wait for the gate. The caller is in the request."""

    admission: Admission
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def unary(self, _call: Call) -> Outcome:
        await self.gate.wait()
        return b"ok"

    async def stream(self, call: Call) -> Outcome:
        return self._messages()

    async def _messages(self) -> Stream:
        yield b"first"
        await self.gate.wait()

    def served(self) -> dict[str, tuple[Method, Proceed]]:
        """Return both RPCs in a short chain."""
        methods = [Method(UNARY, pb.GetUserRequest, POLICY, streams=False)]
        methods += [Method(STREAM, pb.GetUserRequest, POLICY, streams=True)]
        handlers = {UNARY: self.unary, STREAM: self.stream}
        return {
            method.path: (
                method,
                wrap_handler(
                    [
                        map_errors(TIMER, start),
                        limit_calls(method, self.admission),
                        identify,
                    ],
                    handlers[method.path],
                ),
            )
            for method in methods
        }


async def identify(call: Call, proceed: Proceed) -> Outcome:
    """Make the number in a request's body the caller's user id."""
    call.caller = Caller(user_id=int(call.body or b"1"))
    return await proceed(call)


@asynccontextmanager
async def ports(service: Service) -> AsyncIterator[dict[str, CallPort]]:
    """Serve by gRPC, in process, and over the batching stream."""
    served, messages = service.served(), MessageChannel(TIMER)
    metrics = CallMetrics.of()
    execute = call_executor(served, NO_PROXIES, metrics)
    batching = BatchingServicer(execute, MAX_CALLS, messages)
    handlers = Listener(NO_PROXIES, messages).handlers(served)
    server = build_grpc_server([*handlers, batching.handler()])
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(listening_grpc(server, "127.0.0.1:0"))
        address = f"127.0.0.1:{port}"
        plain = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        batched = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        stack.callback(service.gate.set)
        yield {
            "grpc": RemotePort(plain),
            "rest": LocalPort(served, NO_PROXIES, CallMetrics.of(), Reply, CallError),
            "batch": BatchingPort(batched),
        }


async def unary(port: CallPort) -> bytes:
    return (await port.unary(UNARY, b"1", metadata=(), timeout=20)).message


def stream(port: CallPort, user_id: int) -> AsyncGenerator[bytes, None]:
    reply: Any = port.server_stream(STREAM, b"%d" % user_id, metadata=(), timeout=20)
    messages: AsyncGenerator[bytes, None] = aiter(reply)
    return messages


async def until_calls(admission: Admission, count: int) -> None:
    """Wait until this many calls and streams are in flight."""
    async with asyncio.timeout(10):
        while admission.calls + admission.streams != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def assert_overloaded(error: CallError) -> None:
    """Fail unless the error names its reason and when to retry."""
    status = status_pb2.Status.FromString(error.status)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (error.code, info.reason) == (RESOURCE_EXHAUSTED, "OVERLOADED")
    assert retry.retry_delay.seconds >= 1


@pytest.mark.parametrize("transport", ["grpc", "rest", "batch"])
async def test_call_beyond_the_limit_is_refused_at_once(transport: str) -> None:
    """R35: calls of all transports count together; RetryInfo says when to retry."""
    service = Service(Admission(max_calls=3))
    async with ports(service) as by_name:
        running = [asyncio.create_task(unary(port)) for port in by_name.values()]
        await until_calls(service.admission, 3)
        with pytest.raises(CallError) as caught:
            await unary(by_name[transport])
        assert_overloaded(caught.value)
        service.gate.set()
        assert await asyncio.gather(*running) == [b"ok"] * 3
        assert await unary(by_name[transport]) == b"ok"
        assert service.admission.calls == 0


@pytest.mark.parametrize("transport", ["grpc", "rest", "batch"])
async def test_cancelled_calls_make_room(transport: str) -> None:
    service = Service(Admission(max_calls=5))
    async with ports(service) as by_name:
        port = by_name[transport]
        running = [asyncio.create_task(unary(port)) for _ in range(5)]
        await until_calls(service.admission, 5)
        for task in running:
            task.cancel()
        await until_calls(service.admission, 0)


async def test_call_that_arrives_late_is_refused_at_once() -> None:
    """No work begins for a caller whose deadline has passed."""
    service = Service(Admission(max_calls=0))  # a call that begins is OVERLOADED
    port = LocalPort(service.served(), NO_PROXIES, CallMetrics.of(), Reply, CallError)
    with pytest.raises(CallError) as caught:
        await port.unary(UNARY, b"1", metadata=(), timeout=0)
    assert caught.value.code == DEADLINE_EXCEEDED


@pytest.mark.parametrize("transport", ["grpc", "rest"])
async def test_streams_are_limited_by_caller_and_in_all(transport: str) -> None:
    """R35: one caller leaves room for others, and all streams for calls."""
    admission = Admission(max_calls=1, max_streams=3, max_streams_per_caller=2)
    service = Service(admission)
    async with ports(service) as by_name, AsyncExitStack() as stack:
        port = by_name[transport]
        opened = [stream(port, user_id) for user_id in (1, 1, 2)]
        for messages in opened:
            await stack.enter_async_context(aclosing(messages))
            assert await anext(messages) == b"first"
        for user_id in (1, 3):
            with pytest.raises(CallError) as caught:
                await anext(stream(port, user_id))
            assert_overloaded(caught.value)
        await opened[0].aclose()
        await until_calls(admission, 2)
        async with aclosing(stream(port, 1)) as messages:
            assert await anext(messages) == b"first"
        service.gate.set()
        assert await unary(port) == b"ok"
    await until_calls(admission, 0)


async def test_streams_of_one_caller_leave_room_for_others() -> None:
    """R35: while more are allowed in all."""
    admission = Admission(max_streams=9, max_streams_per_caller=1)
    admission.begin_stream("user:1")
    with pytest.raises(Overloaded):
        admission.begin_stream("user:1")
    admission.begin_stream("user:2")


async def test_late_event_loop_admits_fewer_calls() -> None:
    """Calls are refused while the loop cannot keep up, and admitted right after."""
    admission = Admission(max_calls=10, max_calls_while_late=2)
    for _ in range(3):
        admission.begin_call()
    time.sleep(2 * MAX_LAG_SECONDS)  # noqa: ASYNC251 - it makes the loop late
    with pytest.raises(Overloaded) as caught:
        admission.begin_call()
    assert caught.value.retry_after == timedelta(seconds=1)
    await asyncio.sleep(0.05)
    admission.begin_call()
    assert admission.calls == 4


async def test_late_event_loop_admits_few_calls_as_ever() -> None:
    """A pause of the whole machine refuses nothing where few calls are in flight."""
    admission = Admission()
    for _ in range(MAX_CALLS_WHILE_LATE):
        time.sleep(2 * MAX_LAG_SECONDS / MAX_CALLS_WHILE_LATE)  # noqa: ASYNC251
        admission.begin_call()


def test_streams_leave_room_for_calls() -> None:
    """Their limits are apart, and half of the streams are left to other callers."""
    admission = Admission()
    for user_id in (1, 2):
        for _ in range(MAX_STREAMS_PER_CALLER):
            admission.begin_stream(f"user:{user_id}")
        with pytest.raises(Overloaded):
            admission.begin_stream(f"user:{user_id}")
    assert admission.streams == MAX_STREAMS
    admission.begin_call()
