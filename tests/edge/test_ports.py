"""The ports over a channel: the same answers as a port in process."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from batching.v1 import batching_pb2
from edge.app import create_app
from edge.config import EdgeSettings
from edge.errors import DEADLINE_MESSAGE
from edge.port import CallError, RemotePort, Reply
from edge.remote.batching import BatchingPort
from edge.timers import SharedTimer
from server.rpc.batching.call import CallExecutor
from server.rpc.batching.stream import BatchingServicer
from server.rpc.grpc_messages import MessageChannel
from tests.edge.service import FakePort, Stream, client, compiled, status
from tests.edge.shop import SHOP, events, item, kind

SETTINGS = EdgeSettings(response_headers=frozenset(("x-cost",)))
KINDS = (RemotePort, BatchingPort)
MOST = 1_000
READ_TIMEOUT_SECONDS = 2.0  # for a client to read the results of batched calls
SECONDS = 30
WATCH = "/shop.v1.Shop/WatchItems"


class Servicer(grpc.GenericRpcHandler):
    """Serves a port's answers over gRPC."""

    def __init__(self, port: FakePort) -> None:
        self.port = port

    def service(self, details: Any) -> Any:
        if details.method.startswith("/batching."):
            return None

        async def unary(request: bytes, context: Any) -> bytes:
            metadata = tuple((k, v) for k, v in context.invocation_metadata())
            try:
                reply = await self.port.unary(
                    details.method, request, metadata=metadata, timeout=None
                )
            except CallError as error:
                await self.fail(context, error)
                raise
            await context.send_initial_metadata(tuple(reply.headers))
            return reply.message

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            reply = self.port.server_stream(
                details.method, request, metadata=(), timeout=None
            )
            await context.send_initial_metadata(tuple(reply.headers))
            try:
                async for message in reply:
                    yield message
            except CallError as error:
                await self.fail(context, error)

        if details.method.endswith("Watch") or details.method.endswith("WatchItems"):
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    @staticmethod
    async def fail(context: Any, error: CallError) -> None:
        trailers = (("grpc-status-details-bin", error.status),) if error.status else ()
        code = next(one for one in grpc.StatusCode if one.value[0] == error.code)
        await context.abort(code, error.message, trailers)


def port_executor(port: FakePort) -> CallExecutor:
    """Return an executor that answers batched calls through a port."""

    async def execute(
        call: batching_pb2.Call,
        timeout: float | None,  # noqa: ASYNC109  # the port's parameter
        _peer: str,
    ) -> batching_pb2.CallResult:
        metadata = [*map(_read, call.metadata)]
        try:
            reply = await port.unary(
                call.method, call.message, metadata=metadata, timeout=timeout
            )
        except CallError as error:
            result = batching_pb2.CallResult(
                code=error.code, error_message=error.message, status=error.status
            )
        else:
            result = batching_pb2.CallResult(
                message=reply.message,
                headers=map(_written, reply.headers),
                trailers=map(_written, reply.trailers),
            )
        result.id = call.id
        return result

    return execute


def _read(entry: batching_pb2.MetadataEntry) -> tuple[str, str | bytes]:
    binary = entry.key.endswith("-bin")
    return entry.key, entry.value if binary else entry.value.decode()


def _written(entry: tuple[str, str | bytes]) -> batching_pb2.MetadataEntry:
    key, value = entry
    raw = value if isinstance(value, bytes) else value.encode()
    return batching_pb2.MetadataEntry(key=key, value=raw)


class Remote:
    """A server of a port, and the port that calls it: batched or by unary calls."""

    def __init__(
        self, port: FakePort, kind: type[RemotePort] = RemotePort, most: int = MOST
    ) -> None:
        self.server = grpc.aio.server()
        messages = MessageChannel(SharedTimer(0.02), read_timeout=READ_TIMEOUT_SECONDS)
        self.batching = BatchingServicer(port_executor(port), most, messages)
        handlers: list[grpc.GenericRpcHandler] = [Servicer(port)]
        if kind is BatchingPort:
            handlers += [self.batching.handler()]
        self.server.add_generic_rpc_handlers(handlers)
        self.kind = kind

    async def __aenter__(self) -> RemotePort:
        number = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{number}")
        return self.kind(self.channel)

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(None)


INFO = error_details_pb2.ErrorInfo(reason="SOLD_OUT", domain="shop")
ANSWERS: dict[str, FakePort] = {
    "message": FakePort(item(id=1, name="é", etag="v")),
    "headers": FakePort(Reply(b"", headers=(("x-cost", "3"),))),
    "error": FakePort(CallError(9, "no — none", status(9, "no — none", INFO))),
    "stream": FakePort(stream=events("a", "b")),
    "early": FakePort(stream=events(fail=CallError(5, "none"))),
    "late": FakePort(stream=events("a", fail=CallError(14, "gone"))),
    "empty": FakePort(stream=events()),
}


@pytest.mark.parametrize("way", KINDS)
@pytest.mark.parametrize("case", ANSWERS)
async def test_ports_give_the_same_answers(case: str, way: type[RemotePort]) -> None:
    """In bytes and headers, but for what names one request."""
    port = ANSWERS[case]
    path = "/items:watch" if port.stream else "/items/1"
    async with Remote(port, way) as remote:
        responses = []
        for target in (port, remote):
            http = client(create_app(compiled(SHOP), target, SETTINGS))
            answer = await http.get(path, headers={"authorization": "Bearer t"})
            own = (answer.headers.pop("x-request-id"), answer.text)
            body = answer.text
            if "requestId" in body:
                body = body.replace(own[0], "ID")
                cut = body.index('"timestamp"')
                body = body[:cut] + body[body.index('"code"') :]
            responses.append((answer.status_code, answer.headers.multi_items(), body))
    assert responses[0] == responses[1]


@pytest.mark.parametrize("way", KINDS)
async def test_client_disconnect_cancels_remote_call(
    way: type[RemotePort],
) -> None:
    """Cancelling here cancels there, for streams when they are closed."""
    ended = asyncio.Event()
    begun = asyncio.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    async with Remote(FakePort(then=wait), way) as remote:
        call = remote.unary("/shop.v1.Shop/GetItem", b"", metadata=(), timeout=5)
        task = asyncio.create_task(call)
        await begun.wait()
        task.cancel()
        async with asyncio.timeout(1):
            await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("way", KINDS)
async def test_deadline_is_enforced_when_service_ignores_it(
    way: type[RemotePort],
) -> None:
    """DEADLINE_EXCEEDED becomes 504."""

    async def wait() -> None:
        await asyncio.sleep(5)

    async with Remote(FakePort(then=wait), way) as remote:
        http = client(create_app(compiled(SHOP), remote))
        answer = await http.get("/items/1", headers={"grpc-timeout": "20m"})
        assert (answer.status_code, answer.json()["code"]) == (504, 4)


async def test_stream_deadline_has_the_message_of_the_edge() -> None:
    """R38: gRPC's own ones differ from time to time."""

    async def items() -> AsyncIterator[bytes]:
        yield b""
        await asyncio.sleep(SECONDS)

    async with Remote(FakePort(stream=items)) as remote:
        stream = remote.server_stream(WATCH, b"", metadata=(), timeout=0.1)
        with pytest.raises(CallError) as caught:
            [_ async for _ in stream]
    assert (caught.value.code, caught.value.message) == (4, DEADLINE_MESSAGE)


async def test_remote_stream_has_metadata() -> None:
    """Headers before the first message, trailers after the last."""
    async with Remote(FakePort(stream=events("a"))) as remote:
        stream = remote.server_stream(WATCH, b"", metadata=(), timeout=5)
        names = []
        async for message in stream:
            assert ("x-from", "stream") in tuple(stream.headers)
            names.append(kind("WatchItemsResponse").FromString(message).name)
    assert names == ["a"]
    assert isinstance(Stream(aiter(stream)).trailers, tuple)


@pytest.mark.parametrize("way", KINDS)
async def test_unreachable_server_is_unavailable(way: type[RemotePort]) -> None:
    """503, in the shape of every error."""
    channel = grpc.aio.insecure_channel("127.0.0.1:1")
    http = client(create_app(compiled(SHOP), way(channel)))
    answer = await http.get("/items/1")
    assert (answer.status_code, answer.json()["status"]) == (503, "UNAVAILABLE")
    await channel.close()


@pytest.mark.parametrize("way", KINDS)
async def test_addresses_stay_inside(way: type[RemotePort]) -> None:
    """R38: where the service is, and why it cannot be reached, is for the log."""
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        port = way(channel)
        with pytest.raises(CallError) as caught:
            await port.unary("/x.Y/Z", b"", metadata=(), timeout=5)
    assert caught.value.code == 14
    assert "127.0.0.1" not in caught.value.message
