"""A tunnel's other end: what strangers send does no harm, and no rule is gone round."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from batching.v1.batching_pb2 import (
    Answer,
    Call,
    ExecuteBatchRequest,
    ExecuteBatchResponse,
    Pair,
)
from blatam.auth.v1 import auth_pb2
from edge.batching import BatchingPort
from edge.port import Reply
from server.rpc.batching import MOST_CALLS
from tests.edge.service import Port
from tests.edge.test_batching import METHOD, Held, until
from tests.edge.test_ports import Remote
from tests.running import Running

CARRY = "/batching.v1.BatchingService/ExecuteBatch"
LOGIN = "/blatam.auth.v1.AuthService/Login"


@asynccontextmanager
async def opened(service: Port, most: int = 1_000) -> AsyncIterator[tuple[Any, Remote]]:
    """Give a tunnel's stream, to send it whatever one likes."""
    remote = Remote(service, BatchingPort, most)
    async with remote:
        yield remote.channel.stream_stream(CARRY)(), remote


def carry(*numbers: int, cancelled: Sequence[int] = ()) -> bytes:
    calls = [Call(id=n, method=METHOD) for n in numbers]
    return ExecuteBatchRequest(calls=calls, cancelled=cancelled).SerializeToString()


async def answers(stream: Any, count: int) -> list[Answer]:
    """Give the next answers."""
    found: list[Answer] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            found += ExecuteBatchResponse.FromString(await stream.read()).answers
    return found


@pytest.mark.parametrize(
    "sent",
    [b"\xff", carry(1, 1), carry(*range(MOST_CALLS + 1)), b"\n" * 5_000_000],
    ids=["no message", "one id twice", "too many", "too large"],
)
@pytest.mark.parametrize("most", [0, 1_000])
async def test_nonsense_is_refused(
    sent: bytes, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    """And is no error of ours."""
    async with opened(Held(), most) as (stream, _):
        await stream.write(sent)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answers(stream, 1_000)
        assert caught.value.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,  # gRPC's word for a large message
        )
    assert "raised" not in caplog.text


@pytest.mark.parametrize("most", [0, 1_000])
async def test_who_does_not_read_is_not_served_on(most: int) -> None:
    """R34: what is refused takes a place, too, until it is sent."""
    service = Port(Reply(b"x" * 100_000))
    async with opened(service, most) as (stream, remote):

        async def more() -> None:
            for first in range(0, 100_000, 100):
                await stream.write(carry(*range(first, first + 100)))

        sending = asyncio.create_task(more())
        await until(lambda: bool(remote.batching._ends))
        await asyncio.sleep(0.5)
        (end,) = remote.batching._ends.values()
        assert len({one.id for one in end._answers}) <= MOST_CALLS
        assert len(end._calls) <= MOST_CALLS
        assert len(service.calls) < MOST_CALLS * 3  # what the wire itself holds
        sending.cancel()


async def test_calls_and_cancels_without_end() -> None:
    """They are never more at once than calls that are waited for."""
    service = Held()
    async with opened(service) as (stream, remote):
        for first in range(0, 2_000, 100):
            numbers = range(first, first + 100)
            await stream.write(carry(*numbers))
            await stream.write(carry(cancelled=numbers))
        await stream.write(carry(5_000))
        await until(lambda: service.now == 1)
        assert service.most <= MOST_CALLS
        assert remote.batching.running == 1


async def test_cancels_make_room_for_the_calls_beside_them() -> None:
    """Who gives up keeps nobody waiting; what is cancelled at once is not made."""
    service = Held()
    async with opened(service) as (stream, _):
        await stream.write(carry(*range(MOST_CALLS)))
        await until(lambda: service.now == MOST_CALLS)
        new = range(MOST_CALLS, MOST_CALLS + 10)
        await stream.write(carry(*new, cancelled=[*range(9), new[-1]]))
        await until(lambda: len(service.calls) == MOST_CALLS + 9)
        assert service.cancelled == 9


async def test_too_many_over_all_tunnels() -> None:
    """Beyond what the server takes a call is not made, and may be elsewhere."""
    async with opened(Held(), most=10) as (stream, _):
        await stream.write(carry(*range(12)))
        told = await answers(stream, 2)
    assert [(a.id, a.code, a.unmade) for a in told] == [(10, 8, True), (11, 8, True)]


async def test_one_tunnel_for_each_connection() -> None:
    """So that one client takes no more places than it has streams."""
    async with opened(Held()) as (stream, remote):
        await stream.write(carry(1))
        await until(lambda: remote.batching.running == 1)
        second: Any = remote.channel.stream_stream(CARRY)()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await second.read()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_its_calls_end_with_a_tunnel() -> None:
    """Nobody waits for them any more."""
    service = Held()
    async with opened(service) as (stream, remote):
        await stream.write(carry(*range(5)))
        await until(lambda: service.now == 5)
        stream.cancel()
        await until(lambda: service.cancelled == 5)
        await until(lambda: remote.batching.running == 0 and not remote.batching._ends)


async def test_half_closed_it_answers_the_rest() -> None:
    """And ends well."""
    service = Held()
    async with opened(service) as (stream, _):
        await stream.write(carry(*range(5)))
        await stream.done_writing()
        await until(lambda: service.now == 5)
        service.gate.set()
        assert len(await answers(stream, 5)) == 5
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK


async def test_what_breaks_inside_is_one_calls_error() -> None:
    """R38: without a word of why; the others go on."""

    async def broken() -> None:
        raise KeyError("secret")

    service = Port(then=broken)
    async with opened(service) as (stream, _):
        await stream.write(carry(1))
        (answer,) = await answers(stream, 1)
        assert (answer.code, answer.error) == (13, "internal error")
        service.then = None
        await stream.write(carry(2))
        (answer,) = await answers(stream, 1)
        assert answer.code == 0


MANY = [Pair(name="x")] * 600
CALLS = {
    "NUL": (LOGIN, [Pair(name="grpcgateway-user-agent", value=b"a\0b")], 3),
    "escape": (LOGIN, [Pair(name="user-agent", value=b"\n\x1b[2J")], 3),
    "no text": (LOGIN, [Pair(name="x", value=b"\xff")], 3),
    "no name": (LOGIN, [Pair(name="X y", value=b"1")], 3),
    "too many": (LOGIN, MANY, 3),
    "too large": (LOGIN, [Pair(name="x-bin", value=b"1" * 20_000)], 3),
    "no method": ("/blatam.auth.v1.AuthService/Nothing", [], 12),
    "a stream": ("/blatam.auth.v1.AuthService/WatchRevocations", [], 12),
    "binary": (LOGIN, [Pair(name="x-bin", value=b"\xff\0")], 16),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_is_what_grpc_would_let_through(
    shared: Running, name: str
) -> None:
    """R32: and no more; the last one reaches the rules."""
    method, metadata, code = CALLS[name]
    login = auth_pb2.LoginRequest(identifier="nobody", password="Blue7horse")
    call = Call(method=method, message=login.SerializeToString(), metadata=metadata)
    stream: Any = shared.channel.stream_stream(CARRY)()
    await stream.write(ExecuteBatchRequest(calls=[call]).SerializeToString())
    (answer,) = await answers(stream, 1)
    assert answer.code == code
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
