"""The tunnel: what could be lost, mixed up or held up by going together, is not."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest

from batching.v1.batching_pb2 import Answer, ExecuteBatchRequest, ExecuteBatchResponse
from edge.batching import MOST_CALLS, BatchingPort
from edge.port import CallError, Metadata, RemotePort, Reply
from server.rpc.batching import BatchingServicer
from tests.edge.service import Port
from tests.edge.test_ports import Remote, answering

METHOD = "/shop.v1.Shop/GetItem"
SECONDS = 10


class Held(Port):
    """Holds every call until it is let go; counts them."""

    def __init__(self) -> None:
        super().__init__(then=self._wait)
        self.gate = asyncio.Event()
        self.now = self.most = self.cancelled = 0

    async def _wait(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1


async def ask(port: RemotePort, request: bytes = b"", **options: Any) -> bytes:
    """Call, and give the answer."""
    given = {"metadata": (), "timeout": SECONDS, **options}
    return (await port.unary(METHOD, request, **given)).message


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.002)


@asynccontextmanager
async def batching_port(service: Port) -> AsyncIterator[BatchingPort]:
    """Serve it, and give the port that calls it."""
    async with Remote(service, BatchingPort) as port:
        assert isinstance(port, BatchingPort)
        yield port


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give what has gone the usual way."""
    found: list[str] = []
    usual = RemotePort.unary

    async def noted(self: Any, method: str, request: bytes, **options: Any) -> Reply:
        found.append(method)
        return await usual(self, method, request, **options)

    monkeypatch.setattr(RemotePort, "unary", noted)
    return found


async def test_each_has_its_own_answer(direct: list[str]) -> None:
    """Many at once, answered in another order than asked, all over the tunnel."""

    class Late(Port):
        async def unary(
            self,
            method: str,
            request: bytes,
            *,
            metadata: Metadata,
            timeout: float | None,  # noqa: ASYNC109  # the port's word for it
        ) -> Reply:
            await asyncio.sleep(int(request) % 7 / 1000)
            return Reply(request, metadata, (("x-told-bin", request),))

    async with batching_port(Late()) as port:
        given = (("x-é", "é"), ("x-é", "2"), ("k-bin", b"\xff\0"))
        calls = [
            port.unary(METHOD, b"%d" % n, metadata=given, timeout=None)
            for n in range(MOST_CALLS)
        ]
        replies = await asyncio.gather(*calls)
    for number, reply in enumerate(replies):
        told = b"%d" % number
        assert reply == Reply(told, given, (("x-told-bin", told),))
    assert not direct


async def test_calls_of_one_turn_go_together() -> None:
    """That is what it is for."""
    sizes: list[int] = []

    async def carry(_: object, context: Any) -> None:
        request = ExecuteBatchRequest.FromString(await context.read())
        sizes.append(len(request.calls))
        answers = [Answer(id=call.id) for call in request.calls]
        await context.write(ExecuteBatchResponse(answers=answers).SerializeToString())

    async with carried_by(carry) as port:
        await asyncio.gather(*(ask(port) for _ in range(64)))
    assert sizes == [64]


@asynccontextmanager
async def carried_by(carry: Any) -> AsyncIterator[BatchingPort]:
    """Give a port whose calls are answered by some other end."""
    remote = Remote(Port())
    end = BatchingServicer(answering(Port()), 1)
    end._carry = carry  # type: ignore[method-assign]
    remote.server.add_generic_rpc_handlers((end.handler(),))
    async with remote:
        yield BatchingPort(remote.channel)


@pytest.mark.parametrize(
    "said",
    [
        b"\xff",
        ExecuteBatchResponse().SerializeToString(),
        ExecuteBatchResponse(answers=[Answer(id=9)]).SerializeToString(),
        ExecuteBatchResponse(answers=[Answer(id=9, more=True)]).SerializeToString(),
    ],
)
async def test_another_end_that_is_not_right(said: bytes, direct: list[str]) -> None:
    """What may have been made is not made again: UNAVAILABLE."""

    async def carry(_: object, context: Any) -> None:
        await context.read()
        await context.write(said)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "so late")

    async with carried_by(carry) as port:
        with pytest.raises(CallError) as caught:
            await ask(port)
    assert caught.value.code == 14
    assert not direct


async def test_what_is_large_does_not_hold_up_the_others(direct: list[str]) -> None:
    """It has a stream of its own."""
    async with batching_port(Port()) as port:
        await ask(port, b"x" * 64 * 1024)
    assert direct == [METHOD]


@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 2**19, 5_000_000])
async def test_an_answer_of_any_size(size: int) -> None:
    """In parts, where it would be too large for a message."""
    answer = bytes(n % 251 for n in range(size))
    async with batching_port(Port(Reply(answer))) as port:
        first, second = await asyncio.gather(ask(port), ask(port))
        assert first == second == answer


async def test_more_than_fits_goes_the_usual_way(direct: list[str]) -> None:
    """Slow calls do not keep others from being made."""
    service = Held()
    async with batching_port(service) as port:
        calls = [asyncio.create_task(ask(port)) for _ in range(MOST_CALLS + 5)]
        await until(lambda: service.now == len(calls))
        service.gate.set()
        await asyncio.gather(*calls)
    assert len(direct) == 5


@pytest.mark.parametrize("due", [None, 0.0, -1.0, 0.0001, 49 * 86_400.0, math.inf])
async def test_any_deadline_arrives(due: float | None) -> None:
    """As milliseconds, at least what is left; beyond 49 days as 49 days."""
    service = Port()
    async with batching_port(service) as port:
        await ask(port, timeout=due)
    if due is None:
        assert service.timeout is None
    else:
        assert service.timeout is not None
        assert 0 <= service.timeout - min(max(due, 0), 49 * 86_400) < 0.001


async def test_a_server_without_one(direct: list[str]) -> None:
    """Every call is made once, the usual way; the tunnel is not tried each time."""
    service = Port()
    remote = Remote(service)
    async with remote:
        port = BatchingPort(remote.channel)
        opened = Opened(port)
        await asyncio.gather(*(ask(port) for _ in range(20)))
        await ask(port)
        assert (len(direct), len(service.calls), opened.count) == (21, 21, 1)
        port._not_before = 0  # as after a while
        await ask(port)
        assert (len(direct), len(service.calls), opened.count) == (22, 22, 2)


class Opened:
    """Counts the tunnels that a port opens."""

    def __init__(self, port: BatchingPort) -> None:
        self.count = 0
        self._open = port._open
        port._open = self

    def __call__(self) -> Any:
        self.count += 1
        return self._open()


async def test_draining_loses_nothing() -> None:
    """Calls go on all the while: each is made once and answered."""
    service = Port(then=partial(asyncio.sleep, 0.005))
    remote = Remote(service, BatchingPort)
    done = 0

    async def caller(port: RemotePort) -> None:
        nonlocal done
        while done < 2_000:
            assert await ask(port, b"x") == b"x"
            done += 1

    async with remote as port:
        callers = [asyncio.create_task(caller(port)) for _ in range(50)]
        await until(lambda: done > 500)
        remote.batching.drain()
        await asyncio.gather(*callers)
        assert len(service.calls) == done


async def test_a_cancelled_call_ends(direct: list[str]) -> None:
    """There, too; the others do not."""
    service = Held()
    async with batching_port(service) as port:
        calls = [asyncio.create_task(ask(port, b"%d" % n)) for n in range(20)]
        await until(lambda: service.now == 20)
        for call in calls[:15]:
            call.cancel()
        await until(lambda: service.cancelled == 15)
        service.gate.set()
        assert await asyncio.gather(*calls[15:]) == [b"%d" % n for n in range(15, 20)]
    assert not direct


async def test_calls_that_are_cancelled_leave_no_place_taken() -> None:
    """However soon."""
    service = Port()
    async with batching_port(service) as port:
        for _ in range(MOST_CALLS * 2):
            call = asyncio.create_task(ask(port))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        await ask(port)


async def test_a_call_cancelled_before_it_left_is_dropped() -> None:
    """What a server does not read is not kept for it."""

    async def carry(_: object, context: Any) -> None:
        await asyncio.sleep(SECONDS)

    async with carried_by(carry) as port:
        calls = [asyncio.create_task(ask(port, b"x" * 60_000)) for _ in range(200)]
        await asyncio.sleep(0.2)
        batching = port._batching
        assert batching
        assert len(batching._calls) > 100
        for call in calls:
            call.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not batching._calls | batching._waiting | batching._due


async def test_a_server_that_dies(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody knows what became of a call: UNAVAILABLE, and the next one is made."""
    service = Held()
    remote = Remote(service, BatchingPort)
    async with remote as port:
        assert isinstance(port, BatchingPort)
        calls = [asyncio.create_task(ask(port)) for _ in range(3)]
        await until(lambda: service.now == 3)
        await remote.server.stop(0)
        for call in calls:
            with pytest.raises(CallError) as caught:
                await call
            assert caught.value.code == 14
            assert "127.0.0.1" not in caught.value.message
        assert "3 calls failed" in caplog.text
        await until(lambda: service.cancelled == 3)
        async with batching_port(Port()) as other:
            port._open = other._open
            assert await ask(port, b"again") == b"again"


@pytest.mark.parametrize("code", [8, 13, 14])
async def test_no_tunnel_for_now(code: int, direct: list[str]) -> None:
    """A server that is full says so; else UNAVAILABLE, and nothing is made twice."""

    async def carry(_: object, context: Any) -> None:
        await context.abort(next(c for c in grpc.StatusCode if c.value[0] == code))

    async with carried_by(carry) as port:
        with pytest.raises(CallError) as caught:
            await ask(port)
    assert caught.value.code == (8 if code == 8 else 14)
    assert not direct


async def test_what_a_tunnel_has_no_room_for_is_made_without(
    direct: list[str],
) -> None:
    """The server says that it was not made."""
    service = Held()
    remote = Remote(service, BatchingPort, most=3)
    async with remote as port:
        calls = [asyncio.create_task(ask(port, b"%d" % n)) for n in range(5)]
        await until(lambda: service.now == 5)
        assert len(direct) == 2
        service.gate.set()
        assert await asyncio.gather(*calls) == [b"%d" % n for n in range(5)]
    assert len(service.calls) == 5


async def test_a_deadline_that_nobody_there_keeps() -> None:
    """L5: at most 100 ms late where the machine has time; the call ends there."""
    service, took = Held(), []
    async with batching_port(service) as port:
        for _ in range(5):
            began = time.monotonic()
            with pytest.raises(CallError) as caught:
                await ask(port, timeout=0.2)
            assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
            took.append(time.monotonic() - began)
        await until(lambda: service.cancelled == 5)
    assert 0.2 <= min(took) < 0.3


async def test_a_call_cancelled_after_draining_ends() -> None:
    """The stream is open for that until the last one is answered."""
    service = Held()
    remote = Remote(service, BatchingPort)
    async with remote as port:
        calls = [asyncio.create_task(ask(port)) for _ in range(3)]
        await until(lambda: service.now == 3)
        remote.batching.drain()
        await asyncio.sleep(0.05)
        calls[0].cancel()
        await until(lambda: service.cancelled == 1)
        service.gate.set()
        await asyncio.gather(*calls[1:])
        await until(lambda: not remote.batching._ends)
