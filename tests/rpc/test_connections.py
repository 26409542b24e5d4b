"""What clients may do with a connection, and what a broken one leaves in the log."""

import asyncio
import logging
import struct
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

import grpc
import pytest
from grpc import ChannelConnectivity

from server.rpc import grpc_server

PING_INTERVAL = "grpc.http2.min_ping_interval_without_data_ms"
LARGE = 400_000  # bytes; more than HTTP/2 sends to a client that does not read
CALLS = 100


async def start(server: grpc.aio.Server) -> str:
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return f"127.0.0.1:{port}"


async def connect(channel: grpc.aio.Channel) -> None:
    channel.get_state(try_to_connect=True)
    while (state := channel.get_state()) is not ChannelConnectivity.READY:
        await channel.wait_for_state_change(state)


async def test_old_connection_is_replaced_without_a_failed_call() -> None:
    """Its client gets GOAWAY, and makes its next calls over a new connection."""
    peers: set[str] = set()

    async def echo(request: bytes, context: Any) -> bytes:
        peers.add(context.peer())
        await asyncio.sleep(0.01)  # so that calls are running when it ends
        return request

    handler: Any = grpc.unary_unary_rpc_method_handler(cast(Any, echo))
    service = grpc.method_handlers_generic_handler("test.Echo", {"Call": handler})
    age = timedelta(seconds=1)
    server = grpc_server.build_grpc_server([service], max_connection_age=age)
    address = await start(server)

    async def caller(channel: grpc.aio.Channel) -> None:
        call: Any = channel.unary_unary("/test.Echo/Call")
        while len(peers) < 3:
            assert await call(b"ping") == b"ping"

    # Without retries, which would hide a failed call.
    options = [("grpc.enable_retries", 0)]
    async with (
        asyncio.timeout(60),
        grpc.aio.insecure_channel(address, options) as channel,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(8):
            group.create_task(caller(channel))
    await server.stop(None)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7  # frame types of RFC 9113


def frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, 0, 0, 0, 0, 0)) + payload


async def ping(address: str, interval: float, count: int) -> list[int]:
    """Send HTTP/2 pings without any call; return the types of the answering frames."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answers: list[int] = []

    async def read_frames() -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] in (PING, GOAWAY):
                    answers.append(head[3])

    reading = asyncio.create_task(read_frames())
    writer.write(PREFACE + frame(SETTINGS))
    for number in range(count):
        await asyncio.sleep(interval)
        if reading.done():  # disconnected
            break
        writer.write(frame(PING, number.to_bytes(8, "big")))
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await asyncio.shield(reading)
    writer.transport.abort()
    await reading
    return answers


async def test_idle_client_may_ping_every_20_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client with keepalive pings stays connected. Time runs 200 times as fast."""
    options = dict(grpc_server.OPTIONS)
    assert options[PING_INTERVAL] <= 20_000
    scaled = options | {PING_INTERVAL: options[PING_INTERVAL] // 200}
    monkeypatch.setattr(grpc_server, "OPTIONS", tuple(scaled.items()))
    server = grpc_server.build_grpc_server([])
    answers = await ping(await start(server), interval=0.12, count=10)
    await server.stop(None)
    assert answers == [PING] * 10


async def test_client_that_pings_too_often_is_disconnected() -> None:
    server = grpc_server.build_grpc_server([])
    answers = await ping(await start(server), interval=0.12, count=10)
    await server.stop(None)
    assert GOAWAY in answers


class StalledProxy:
    """A TCP proxy that stops reading the server's responses and then disconnects."""

    def __init__(self, upstream: str) -> None:
        self._host, _, self._port = upstream.rpartition(":")
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.stalled = False

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        server = await asyncio.open_connection(self._host, self._port, limit=4096)
        self._writers += [writer, server[1]]
        self._tasks += [
            asyncio.create_task(self._copy(reader, server[1], stalls=False)),
            asyncio.create_task(self._copy(server[0], writer, stalls=True)),
        ]

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, stalls: bool
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(4096):
                if stalls and self.stalled:
                    await asyncio.Event().wait()  # until disconnect()
                sink.write(data)
                await sink.drain()

    async def disconnect(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        self._server.close()


@pytest.fixture
def grpc_errors() -> Iterator[list[logging.LogRecord]]:
    """Return the errors that gRPC logs, as a handler of the root logger sees them."""
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name.startswith("grpc") and record.levelno >= logging.ERROR:
                records.append(record)

    handler = Handler()
    logging.getLogger().addHandler(handler)
    yield records
    logging.getLogger().removeHandler(handler)


async def test_connection_lost_while_responses_wait_logs_no_traceback(
    grpc_errors: list[logging.LogRecord],
) -> None:
    """A response that can no longer be sent is no error of the server."""
    begun = asyncio.Semaphore(0)

    async def respond(_request: bytes, _context: Any) -> bytes:
        begun.release()
        return b"x" * LARGE

    method: Any = grpc.unary_unary_rpc_method_handler(cast(Any, respond))
    handler = grpc.method_handlers_generic_handler("t.S", {"M": method})
    server = grpc_server.build_grpc_server([handler])
    address = await start(server)
    for _attempt in range(5):  # the order of the events is chance
        proxy = StalledProxy(address)
        async with grpc.aio.insecure_channel(await proxy.start()) as channel:
            await connect(channel)
            proxy.stalled = True
            send: Any = channel.unary_unary("/t.S/M")
            calls = [send(b"") for _ in range(CALLS)]
            async with asyncio.timeout(10):
                for _ in calls:
                    await begun.acquire()
            await asyncio.sleep(0.1)  # the responses wait for the client to read
            await proxy.disconnect()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(each, grpc.aio.AioRpcError) for each in outcomes)
    await server.stop(None)
    assert not [record.getMessage() for record in grpc_errors]


async def test_other_errors_of_grpc_are_logged(
    grpc_errors: list[logging.LogRecord],
) -> None:
    grpc_server.build_grpc_server([])
    logging.getLogger("grpc._cython.cygrpc").error("Unexpected [X] raised")
    messages = [record.getMessage() for record in grpc_errors]
    assert "Unexpected [X] raised" in messages
