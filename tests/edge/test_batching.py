"""The batching port: no result is lost, mixed up or delayed by sharing a stream."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest

from batching.v1.batching_pb2 import (
    CallResult,
    ExecuteBatchRequest,
    ExecuteBatchResponse,
)
from edge.port import CallError, Metadata, RemotePort, Reply
from edge.remote.batching import MAX_CALLS, BatchingPort
from tests.edge.service import FakePort
from tests.edge.test_ports import Remote

METHOD = "/shop.v1.Shop/GetItem"
SECONDS = 10
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
MAX_TIMEOUT = 49 * 86_400.0


class GatedService(FakePort):
    """Blocks every call until the gate opens, and counts the calls.

    A cancelled call ends after `cleanup` seconds.
    """

    def __init__(self, cleanup: float = 0) -> None:
        super().__init__(then=self._wait)
        self.gate = asyncio.Event()
        self.cleanup = cleanup
        self.running = self.peak = self.cancelled = 0

    async def _wait(self) -> None:
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.sleep(self.cleanup)
            raise
        finally:
            self.running -= 1


async def call(port: RemotePort, request: bytes = b"", **options: Any) -> bytes:
    """Call METHOD and return the response message."""
    arguments = {"metadata": (), "timeout": SECONDS, **options}
    return (await port.unary(METHOD, request, **arguments)).message


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.002)


@asynccontextmanager
async def batching_port(service: FakePort) -> AsyncIterator[BatchingPort]:
    """Serve the service and return a batching port to it."""
    async with Remote(service, BatchingPort) as port:
        assert isinstance(port, BatchingPort)
        yield port


@asynccontextmanager
async def port_to(serve: Any) -> AsyncIterator[BatchingPort]:
    """Return a port whose batching stream is served by `serve(request, context)`."""
    remote = Remote(FakePort())
    servicer = remote.batching
    servicer._serve = serve  # type: ignore[method-assign]
    remote.server.add_generic_rpc_handlers((servicer.handler(),))
    async with remote:
        yield BatchingPort(remote.channel)


@pytest.fixture
def plain_calls(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Return the timeouts of the calls that used the plain port."""
    timeouts: list[float | None] = []
    unary = RemotePort.unary

    async def recorded(self: Any, method: str, request: bytes, **options: Any) -> Reply:
        timeouts.append(options["timeout"])
        return await unary(self, method, request, **options)

    monkeypatch.setattr(RemotePort, "unary", recorded)
    return timeouts


async def test_concurrent_calls_get_their_own_results(
    plain_calls: list[float | None],
) -> None:
    """Results that arrive in another order than the calls reach the right callers."""

    class SlowService(FakePort):
        async def unary(
            self,
            method: str,
            request: bytes,
            *,
            metadata: Metadata,
            timeout: float | None,  # noqa: ASYNC109  # the port's parameter
        ) -> Reply:
            await asyncio.sleep(int(request) % 7 / 1000)
            return Reply(request, metadata, (("x-request-bin", request),))

    async with batching_port(SlowService()) as port:
        metadata = (("x-é", "é"), ("x-é", "2"), ("k-bin", b"\xff\0"))
        calls = [
            port.unary(METHOD, b"%d" % n, metadata=metadata, timeout=None)
            for n in range(MAX_CALLS)
        ]
        replies = await asyncio.gather(*calls)
    for number, reply in enumerate(replies):
        request = b"%d" % number
        assert reply == Reply(request, metadata, (("x-request-bin", request),))
    assert not plain_calls


async def test_calls_of_one_loop_turn_share_a_message() -> None:
    sizes: list[int] = []

    async def serve(_: object, context: Any) -> None:
        request = ExecuteBatchRequest.FromString(await context.read())
        sizes.append(len(request.calls))
        results = [CallResult(id=call.id) for call in request.calls]
        await context.write(ExecuteBatchResponse(results=results).SerializeToString())

    async with port_to(serve) as port:
        await asyncio.gather(*(call(port) for _ in range(64)))
    assert sizes == [64]


@pytest.mark.parametrize(
    "response",
    [
        b"\xff",
        ExecuteBatchResponse().SerializeToString(),
        ExecuteBatchResponse(results=[CallResult(id=9)]).SerializeToString(),
        ExecuteBatchResponse(
            results=[CallResult(id=9, partial=True)]
        ).SerializeToString(),
    ],
)
async def test_invalid_response_is_unavailable_without_second_attempt(
    response: bytes, plain_calls: list[float | None]
) -> None:
    """A call that the server may have executed is not executed again."""

    async def serve(_: object, context: Any) -> None:
        await context.read()
        await context.write(response)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "after a response")

    async with port_to(serve) as port:
        with pytest.raises(CallError) as caught:
            await call(port)
    assert caught.value.code == UNAVAILABLE
    assert not plain_calls


async def test_large_call_uses_the_plain_port(plain_calls: list[float | None]) -> None:
    """A large request must not delay the others."""
    async with batching_port(FakePort()) as port:
        await call(port, b"x" * 64 * 1024)
    assert len(plain_calls) == 1


@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 2**19, 5_000_000])
async def test_response_of_any_size_arrives_complete(size: int) -> None:
    """Large responses are sent in parts."""
    response = bytes(n % 251 for n in range(size))
    async with batching_port(FakePort(Reply(response))) as port:
        first, second = await asyncio.gather(call(port), call(port))
        assert first == second == response


async def test_calls_above_the_stream_limit_use_the_plain_port(
    plain_calls: list[float | None],
) -> None:
    """Slow calls do not keep others from being executed."""
    service = GatedService()
    async with batching_port(service) as port:
        calls = [asyncio.create_task(call(port)) for _ in range(MAX_CALLS + 5)]
        await until(lambda: service.running == len(calls))
        service.gate.set()
        await asyncio.gather(*calls)
    assert len(plain_calls) == 5


@pytest.mark.parametrize("seconds", [None, 0.05, 1.0, MAX_TIMEOUT, math.inf])
async def test_deadline_reaches_the_service(seconds: float | None) -> None:
    """The service gets what is left, rounded up to milliseconds; at most 49 days."""
    service = FakePort()
    async with batching_port(service) as port:
        await call(port, timeout=seconds)
    if seconds is None:
        assert service.timeout is None
    else:
        assert service.timeout is not None
        assert -0.04 < service.timeout - min(seconds, MAX_TIMEOUT) < 0.001


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_call_after_its_deadline_is_not_executed(seconds: float) -> None:
    service = FakePort()
    async with batching_port(service) as port:
        with pytest.raises(CallError) as caught:
            await call(port, timeout=seconds)
        assert caught.value.code == DEADLINE_EXCEEDED
        await call(port)
    assert len(service.calls) == 1


async def test_server_without_batching_gets_plain_calls(
    plain_calls: list[float | None],
) -> None:
    """Every call is executed once; batching is not tried again for a while."""
    service = FakePort()
    remote = Remote(service)
    async with remote:
        port = BatchingPort(remote.channel)
        opened = OpenedStreams(port)
        await asyncio.gather(*(call(port) for _ in range(20)))
        await call(port)
        assert (len(plain_calls), len(service.calls), opened.count) == (21, 21, 1)
        port._not_before = 0  # the interval has passed
        await call(port)
        assert (len(plain_calls), len(service.calls), opened.count) == (22, 22, 2)


class OpenedStreams:
    """Counts the streams that a port opens."""

    def __init__(self, port: BatchingPort) -> None:
        self.count = 0
        self._open = port._open
        port._open = self

    def __call__(self) -> Any:
        self.count += 1
        return self._open()


async def test_draining_server_loses_no_call() -> None:
    """Calls that arrive while the server drains are executed once and answered."""
    service = FakePort(then=partial(asyncio.sleep, 0.005))
    remote = Remote(service, BatchingPort)
    done = 0

    async def call_in_a_loop(port: RemotePort) -> None:
        nonlocal done
        while done < 2_000:
            assert await call(port, b"x") == b"x"
            done += 1

    async with remote as port:
        callers = [asyncio.create_task(call_in_a_loop(port)) for _ in range(50)]
        await until(lambda: done > 500)
        remote.batching.drain()
        await asyncio.gather(*callers)
        assert len(service.calls) == done


async def test_old_stream_is_replaced_without_losing_a_call(
    plain_calls: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with a limit on the age of connections ends streams that stay.

    Calls are plain ones until the calls of the old stream have ended.
    """
    service = GatedService()
    async with batching_port(service) as port:
        first = asyncio.create_task(call(port, b"first"))
        await until(lambda: service.running == 1)
        old = port._stream_of_calls
        assert old
        monkeypatch.setattr("edge.remote.batching.MAX_STREAM_AGE", 0.0)
        second = asyncio.create_task(call(port, b"second"))
        await until(lambda: service.running == 2)
        service.gate.set()
        await asyncio.gather(first, second)
        await until(lambda: old.ended)
        monkeypatch.setattr("edge.remote.batching.MAX_STREAM_AGE", 60.0)
        await call(port, b"third")
        assert port._stream_of_calls is not old
        assert not old.refused
    assert len(plain_calls) == 1


async def test_cancelled_call_ends_at_the_service(
    plain_calls: list[float | None],
) -> None:
    """The other calls of the stream go on."""
    service = GatedService()
    async with batching_port(service) as port:
        calls = [asyncio.create_task(call(port, b"%d" % n)) for n in range(20)]
        await until(lambda: service.running == 20)
        for task in calls[:15]:
            task.cancel()
        await until(lambda: service.cancelled == 15)
        service.gate.set()
        assert await asyncio.gather(*calls[15:]) == [b"%d" % n for n in range(15, 20)]
    assert not plain_calls


async def test_cancelled_calls_free_their_places() -> None:
    """However early a call is cancelled."""
    service = FakePort()
    async with batching_port(service) as port:
        for _ in range(MAX_CALLS * 2):
            task = asyncio.create_task(call(port))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await call(port)


async def test_call_does_not_wait_for_cancelled_calls(
    plain_calls: list[float | None],
) -> None:
    """Cancelled calls that end slowly occupy the stream; the next call goes plain."""
    service = GatedService(cleanup=2)
    async with batching_port(service) as port:
        calls = [asyncio.create_task(call(port)) for _ in range(MAX_CALLS)]
        await until(lambda: service.running == MAX_CALLS)
        for task in calls:
            task.cancel()
        await until(lambda: service.cancelled == MAX_CALLS)
        service.gate.set()
        began = time.monotonic()
        assert await call(port, b"next", timeout=1) == b"next"
        assert time.monotonic() - began < 0.5
    assert len(plain_calls) == 1


async def test_call_cancelled_before_it_was_sent_is_dropped() -> None:
    """The port does not keep calls for a server that does not read."""

    async def serve(_: object, context: Any) -> None:
        await asyncio.sleep(SECONDS)

    async with port_to(serve) as port:
        calls = [asyncio.create_task(call(port, b"x" * 60_000)) for _ in range(200)]
        await asyncio.sleep(0.2)
        stream = port._stream_of_calls
        assert stream
        assert len(stream._calls) > 100
        for task in calls:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not stream._calls | stream._waiting | stream._deadlines


async def test_lost_server_is_unavailable_and_the_next_call_reconnects(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The outcome of the calls in flight is unknown: they are not repeated."""
    service = GatedService()
    remote = Remote(service, BatchingPort)
    async with remote as port:
        assert isinstance(port, BatchingPort)
        calls = [asyncio.create_task(call(port)) for _ in range(3)]
        await until(lambda: service.running == 3)
        await remote.server.stop(0)
        for task in calls:
            with pytest.raises(CallError) as caught:
                await task
            assert caught.value.code == UNAVAILABLE
            assert "127.0.0.1" not in caught.value.message
        assert caplog.text.count("the service cannot be reached") == 1
        await until(lambda: service.cancelled == 3)
        async with batching_port(FakePort()) as other:
            port._open = other._open
            assert await call(port, b"again") == b"again"


@pytest.mark.parametrize("kind", [RemotePort, BatchingPort])
async def test_outage_is_logged_once(
    kind: type[RemotePort], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the number of calls nor that of streams makes the log longer."""
    text = "the service cannot be reached"
    async with Remote(FakePort(), kind) as port:
        channel = grpc.aio.insecure_channel("127.0.0.1:1")
        reachable, unreachable = port.__dict__.copy(), kind(channel).__dict__
        shared = {"_outages": reachable["_outages"]}
        for lines in (1, 2):
            vars(port).update(unreachable | shared)
            for _ in range(3):
                with pytest.raises(CallError):
                    await call(port)
            assert caplog.text.count(text) == lines
            vars(port).update(reachable)
            await call(port)
        await channel.close()


@pytest.mark.parametrize("kind", [RemotePort, BatchingPort])
async def test_closed_channel_cancels_calls(
    kind: type[RemotePort], caplog: pytest.LogCaptureFixture
) -> None:
    """Both ports raise CancelledError for calls in flight, UsageError afterwards."""
    service = GatedService()
    remote = Remote(service, kind)
    async with remote as port:
        calls = [asyncio.create_task(call(port)) for _ in range(3)]
        await until(lambda: service.running == 3)
        await remote.channel.close()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in outcomes] == [asyncio.CancelledError] * 3
        await until(lambda: service.cancelled == 3)
        with pytest.raises(grpc.aio.UsageError):
            await call(port)
    assert "cannot be reached" not in caplog.text


@pytest.mark.parametrize("code", [8, 13, 14])
async def test_refused_stream_is_not_retried(
    code: int, plain_calls: list[float | None]
) -> None:
    """RESOURCE_EXHAUSTED is passed on; any other code becomes UNAVAILABLE."""

    async def serve(_: object, context: Any) -> None:
        await context.abort(next(c for c in grpc.StatusCode if c.value[0] == code))

    async with port_to(serve) as port:
        with pytest.raises(CallError) as caught:
            await call(port)
    assert caught.value.code == (8 if code == 8 else UNAVAILABLE)
    assert not plain_calls


async def test_call_that_was_not_executed_uses_the_plain_port(
    plain_calls: list[float | None],
) -> None:
    """The server says which calls it did not execute."""
    service = GatedService()
    remote = Remote(service, BatchingPort, most=3)
    async with remote as port:
        calls = [asyncio.create_task(call(port, b"%d" % n)) for n in range(5)]
        await until(lambda: service.running == 5)
        assert len(plain_calls) == 2
        service.gate.set()
        assert await asyncio.gather(*calls) == [b"%d" % n for n in range(5)]
    assert len(service.calls) == 5


async def test_call_that_falls_back_keeps_its_deadline(
    plain_calls: list[float | None],
) -> None:
    """The time that batching took counts: the plain call gets what is left."""

    async def refuse_late(_: object, context: Any) -> None:
        await asyncio.sleep(0.31)  # a timer may fire a little early
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no batching")

    async with port_to(refuse_late) as port:
        await call(port, timeout=1)
    (timeout,) = plain_calls
    assert timeout is not None
    assert 0 < timeout <= 0.7


async def test_missed_deadline_is_reported_by_the_port() -> None:
    """L5: at most 100 ms late, and the call is cancelled at the service."""
    service, durations = GatedService(), []
    async with batching_port(service) as port:
        for _ in range(5):
            began = time.monotonic()
            with pytest.raises(CallError) as caught:
                await call(port, timeout=0.2)
            assert caught.value.code == DEADLINE_EXCEEDED
            durations.append(time.monotonic() - began)
        await until(lambda: service.cancelled == 5)
    assert 0.2 <= min(durations) < 0.3


async def test_call_cancelled_while_draining_ends_at_the_service() -> None:
    """The stream stays open for cancellations until every call has ended."""
    service = GatedService()
    remote = Remote(service, BatchingPort)
    async with remote as port:
        calls = [asyncio.create_task(call(port)) for _ in range(3)]
        await until(lambda: service.running == 3)
        remote.batching.drain()
        await asyncio.sleep(0.05)
        calls[0].cancel()
        await until(lambda: service.cancelled == 1)
        service.gate.set()
        await asyncio.gather(*calls[1:])
        await until(lambda: not remote.batching._streams)
