"""The batching servicer: hostile clients do no harm, and every rule applies."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from batching.v1.batching_pb2 import (
    Call,
    CallResult,
    ExecuteBatchRequest,
    ExecuteBatchResponse,
    MetadataEntry,
)
from blatam.auth.v1 import auth_pb2
from edge.port import Reply
from edge.remote.batching import BatchingPort
from server.rpc.grpc_server import MAX_CALLS_PER_CONNECTION
from tests.edge.service import FakePort
from tests.edge.test_batching import METHOD, GatedService, until
from tests.edge.test_ports import Remote
from tests.running import RunningService

EXECUTE_BATCH = "/batching.v1.BatchingService/ExecuteBatch"
LOGIN = "/blatam.auth.v1.AuthService/Login"
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


@asynccontextmanager
async def opened(
    service: FakePort, most: int = 1_000
) -> AsyncIterator[tuple[Any, Remote]]:
    """Return a raw batching stream to the service, and the server."""
    remote = Remote(service, BatchingPort, most)
    async with remote:
        yield remote.channel.stream_stream(EXECUTE_BATCH)(), remote


def batch(
    *ids: int, cancelled: Sequence[int] = (), timeout_ms: int | None = None
) -> bytes:
    calls = [Call(id=n, method=METHOD, timeout_ms=timeout_ms) for n in ids]
    return ExecuteBatchRequest(calls=calls, cancelled=cancelled).SerializeToString()


async def read_results(stream: Any, count: int) -> list[CallResult]:
    """Return the next results."""
    results: list[CallResult] = []
    async with asyncio.timeout(10):
        while len(results) < count:
            results += ExecuteBatchResponse.FromString(await stream.read()).results
    return results


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\xff",
        batch(1, 1),
        batch(*range(MAX_CALLS_PER_CONNECTION + 1)),
        b"\n" * 5_000_000,
    ],
    ids=["undecodable", "duplicate id", "too many calls", "too large"],
)
@pytest.mark.parametrize("most", [0, 1_000])
async def test_invalid_request_ends_the_stream(
    request_bytes: bytes, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The client is at fault: no error in the log."""
    async with opened(GatedService(), most) as (stream, _):
        await stream.write(request_bytes)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_results(stream, 1_000)
        assert caught.value.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,  # gRPC's own for a large message
        )
    assert "raised" not in caplog.text


@pytest.mark.parametrize("most", [0, 1_000])
async def test_client_that_does_not_read_is_not_served_further(most: int) -> None:
    """R34: a call takes a place until its result is sent, a refused one too."""
    service = FakePort(Reply(b"x" * 100_000))
    async with opened(service, most) as (stream, remote):

        async def write_calls() -> None:
            for first in range(0, 100_000, 100):
                await stream.write(batch(*range(first, first + 100)))

        writing = asyncio.create_task(write_calls())
        await until(lambda: bool(remote.batching._streams))
        await asyncio.sleep(0.5)
        (served,) = remote.batching._streams.values()
        unsent = {result.id for result in served._results}
        assert len(unsent) <= MAX_CALLS_PER_CONNECTION
        assert len(served._calls) <= MAX_CALLS_PER_CONNECTION
        # HTTP/2 flow control lets some through
        assert len(service.calls) < MAX_CALLS_PER_CONNECTION * 3
        writing.cancel()


async def test_stream_that_is_not_read_ends() -> None:
    """R35: the client has a limited time to make room for more results."""
    service = FakePort(Reply(b"x" * 100_000))
    async with opened(service) as (stream, remote):

        async def write_calls() -> None:
            for first in range(0, 100_000, 100):
                await stream.write(batch(*range(first, first + 100)))

        writing = asyncio.create_task(write_calls())
        await until(lambda: bool(remote.batching._streams))
        await until(lambda: not remote.batching._streams)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def test_cancelled_calls_count_until_they_end() -> None:
    """Calls that are cancelled at once never exceed the limit of running calls."""
    service = GatedService()
    async with opened(service) as (stream, remote):
        for first in range(0, 2_000, 100):
            ids = range(first, first + 100)
            await stream.write(batch(*ids))
            await stream.write(batch(cancelled=ids))
        await stream.write(batch(5_000))
        await until(lambda: service.running == remote.batching.running == 1)
        assert service.peak <= MAX_CALLS_PER_CONNECTION


async def test_calls_behind_slow_cancellations_are_not_executed() -> None:
    """They get an immediate answer instead of waiting; the limit still holds."""
    service = GatedService(cleanup=2)
    async with opened(service) as (stream, _):
        first = range(MAX_CALLS_PER_CONNECTION)
        await stream.write(batch(*first))
        await until(lambda: service.running == MAX_CALLS_PER_CONNECTION)
        await stream.write(batch(cancelled=first))
        await until(lambda: service.cancelled == MAX_CALLS_PER_CONNECTION)
        began = time.monotonic()
        await stream.write(batch(1_000, 1_001, timeout_ms=1_000))
        results = await read_results(stream, 2)
        assert time.monotonic() - began < 0.5
    assert [(r.id, r.code, r.not_executed) for r in results] == [
        (1_000, RESOURCE_EXHAUSTED, True),
        (1_001, RESOURCE_EXHAUSTED, True),
    ]
    assert service.peak == MAX_CALLS_PER_CONNECTION


async def test_deadline_counts_from_the_arrival_of_the_message() -> None:
    """Calls that waited for the client to read results get what is left."""
    service = FakePort(Reply(b"x" * 100_000))
    async with opened(service) as (stream, _):
        # Results that the client does not read yet fill every place of the stream.
        await stream.write(batch(*range(MAX_CALLS_PER_CONNECTION)))
        await until(lambda: len(service.calls) == MAX_CALLS_PER_CONNECTION)
        ids = range(1_000, 1_000 + MAX_CALLS_PER_CONNECTION)
        await stream.write(batch(*ids, timeout_ms=200))
        await asyncio.sleep(0.4)
        # How many results fit into the buffers of the connection varies.
        assert len(service.calls) < 2 * MAX_CALLS_PER_CONNECTION
        results = {
            result.id: result
            for result in await read_results(stream, MAX_CALLS_PER_CONNECTION * 2)
            if not result.partial
        }
    late = results[ids[-1]]
    assert (late.code, late.not_executed) == (DEADLINE_EXCEEDED, True)


async def test_cancellations_make_room_for_calls_of_the_same_message() -> None:
    """A call that is cancelled in its own message is not executed."""
    service = GatedService()
    async with opened(service) as (stream, _):
        await stream.write(batch(*range(MAX_CALLS_PER_CONNECTION)))
        await until(lambda: service.running == MAX_CALLS_PER_CONNECTION)
        await stream.write(batch(cancelled=range(9)))
        await until(lambda: service.cancelled == 9)
        new = range(MAX_CALLS_PER_CONNECTION, MAX_CALLS_PER_CONNECTION + 10)
        await stream.write(batch(*new, cancelled=[*range(9, 18), new[-1]]))
        await until(lambda: len(service.calls) == MAX_CALLS_PER_CONNECTION + 9)
        assert service.cancelled == 18


async def test_limit_over_all_streams() -> None:
    """Calls beyond it are not executed, and the result says so."""
    async with opened(GatedService(), most=10) as (stream, _):
        await stream.write(batch(*range(12)))
        results = await read_results(stream, 2)
    assert [(r.id, r.code, r.not_executed) for r in results] == [
        (10, RESOURCE_EXHAUSTED, True),
        (11, RESOURCE_EXHAUSTED, True),
    ]


async def test_second_stream_of_a_connection_is_refused() -> None:
    """One client gets no more places than its connection has streams."""
    async with opened(GatedService()) as (stream, remote):
        await stream.write(batch(1))
        await until(lambda: remote.batching.running == 1)
        second: Any = remote.channel.stream_stream(EXECUTE_BATCH)()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await second.read()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_cancelled_stream_cancels_its_calls() -> None:
    service = GatedService()
    async with opened(service) as (stream, remote):
        await stream.write(batch(*range(5)))
        await until(lambda: service.running == 5)
        stream.cancel()
        await until(lambda: service.cancelled == 5)
        servicer = remote.batching
        await until(lambda: servicer.running == 0 and not servicer._streams)


async def test_half_closed_stream_answers_every_call() -> None:
    """Then it ends with OK."""
    service = GatedService()
    async with opened(service) as (stream, _):
        await stream.write(batch(*range(5)))
        await stream.done_writing()
        await until(lambda: service.running == 5)
        service.gate.set()
        assert len(await read_results(stream, 5)) == 5
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK


async def test_exception_in_one_call_leaves_the_others_alone() -> None:
    """R38: the caller gets INTERNAL without the exception's text."""

    async def fail() -> None:
        raise KeyError("secret")

    service = FakePort(then=fail)
    async with opened(service) as (stream, _):
        await stream.write(batch(1))
        (result,) = await read_results(stream, 1)
        assert (result.code, result.error_message) == (13, "internal error")
        service.then = None
        await stream.write(batch(2))
        (result,) = await read_results(stream, 1)
        assert result.code == 0


USER_AGENT = "grpcgateway-user-agent"
# Channels to one address share a connection otherwise, and it has one such stream.
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
CALLS = {
    "NUL": (LOGIN, [MetadataEntry(key=USER_AGENT, value=b"a\0b")], 3),
    "escape": (LOGIN, [MetadataEntry(key="user-agent", value=b"\n\x1b[2J")], 3),
    "not ASCII": (LOGIN, [MetadataEntry(key="x", value=b"\xff")], 3),
    "digits that are not ASCII": (
        LOGIN,
        [MetadataEntry(key="grpc-timeout", value="\u0665S".encode())],
        3,
    ),
    "invalid key": (LOGIN, [MetadataEntry(key="X y", value=b"1")], 3),
    "key that is not ASCII": (LOGIN, [MetadataEntry(key="x\u0665", value=b"1")], 3),
    "too many entries": (LOGIN, [MetadataEntry(key="x")] * 600, 3),
    "too large": (LOGIN, [MetadataEntry(key="x-bin", value=b"1" * 20_000)], 3),
    "unknown method": ("/blatam.auth.v1.AuthService/Nothing", [], 12),
    "stream": ("/blatam.auth.v1.AuthService/WatchRevocations", [], 12),
    "binary": (LOGIN, [MetadataEntry(key="x-bin", value=b"\xff\0")], 16),
}


@pytest.mark.parametrize("name", CALLS)
async def test_metadata_is_limited_as_in_grpc(
    shared: RunningService, name: str
) -> None:
    """R32: what gRPC refuses is refused here; the last case reaches the servicer."""
    method, metadata, code = CALLS[name]
    login = auth_pb2.LoginRequest(identifier="unknown", password="Blue7horse")
    call = Call(method=method, message=login.SerializeToString(), metadata=metadata)
    async with grpc.aio.insecure_channel(shared.address, OWN_CONNECTION) as channel:
        stream: Any = channel.stream_stream(EXECUTE_BATCH)()
        await stream.write(ExecuteBatchRequest(calls=[call]).SerializeToString())
        (result,) = await read_results(stream, 1)
        assert result.code == code
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
