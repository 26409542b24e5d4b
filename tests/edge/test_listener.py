"""Limits and request framing of the HTTP listener, on a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn

from edge.app import create_app
from edge.config import EdgeSettings
from edge.connections import ConnectionLimits
from edge.http.trusted_proxies import TrustedProxies
from edge.listener import DeadlinedProtocol, limited_protocol
from tests.edge.service import FakePort, compiled
from tests.edge.shop import SHOP, events, item, kind

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ImpatientProtocol(DeadlinedProtocol):
    header_timeout = 0.5
    write_timeout = 0.5


@asynccontextmanager
async def listening(
    port: FakePort,
    protocol: type[DeadlinedProtocol] = ImpatientProtocol,
    settings: EdgeSettings = EdgeSettings(),  # noqa: B008 - immutable
) -> AsyncIterator[int]:
    """Serve the shop; yield the number of the TCP port."""
    app = create_app(compiled(SHOP), port, settings)
    config = uvicorn.Config(
        app, port=0, http=protocol, lifespan="off", log_level="critical"
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


@asynccontextmanager
async def connected(port: FakePort | None = None) -> AsyncIterator[Connection]:
    """Yield a connection to a server with short deadlines."""
    async with listening(port or FakePort(item(id=1))) as number:
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        try:
            yield reader, writer
        finally:
            writer.close()


@pytest.mark.parametrize("part", [b"", b"GET /items/1 HTTP/1.1\r\nHost: x\r\n"])
async def test_missing_headers_close_the_connection(part: bytes) -> None:
    """R35: counted from the connection, and from a request's first byte."""
    async with connected() as (reader, writer):
        first = b"GET /items/1 HTTP/1.1\r\nHost: x\r\n\r\n" if part else b""
        writer.write(first + part)
        async with asyncio.timeout(2):
            answer = await reader.read(-1)
        assert answer.startswith(b"HTTP/1.1 200") if part else answer == b""


async def test_stalled_body_closes_the_connection_with_its_408() -> None:
    """R35: it does not wait for the rest of the request as well."""
    settings = EdgeSettings(body_idle_timeout=0.2)
    head = b"POST /items HTTP/1.1\r\nHost: x\r\ncontent-length: 9\r\n\r\n"
    async with listening(FakePort(), DeadlinedProtocol, settings) as number:
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        writer.write(head + b"{")
        async with asyncio.timeout(DeadlinedProtocol.header_timeout / 2):
            answer = await reader.read(-1)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"\r\nconnection: close\r\n" in answer


async def test_requests_that_the_parser_refuses_are_observed() -> None:
    """Once each, without the client's text; a valid one is the application's."""
    observed: list[tuple[str, str, int]] = []

    def observe(method: str, route: str, status: int, _: float) -> None:
        observed.append((method, route, status))

    protocol = limited_protocol(ConnectionLimits(TrustedProxies(())), observe)
    refused = (b"XYZZY / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n")
    served = b"GET /items/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with listening(FakePort(item(id=1)), protocol) as number:
        for request in (*refused, served):
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            writer.write(request)
            assert (await reader.read(-1)).startswith(b"HTTP/1.1 ")
            writer.close()
    assert observed == [("_OTHER", "_OTHER", 400)] * 2


MAX_SENT = 2**26  # bytes


async def bytes_accepted_after(head: bytes) -> int:
    """Return how many bytes can be sent after a head until the server closes."""
    sent = 0
    async with connected() as (_, writer), asyncio.timeout(10):
        writer.write(head)
        with suppress(ConnectionError):
            while not writer.is_closing() and sent < MAX_SENT:
                writer.write(b"a" * 65_536)
                sent += 65_536
                await writer.drain()
                await asyncio.sleep(0)
    return sent


async def test_endless_headers_close_the_connection() -> None:
    """R34: headers are not buffered without a limit; a large body is no header."""
    async with connected() as (reader, writer):
        head = b"POST /items HTTP/1.1\r\nHost: x\r\ncontent-length: 90000\r\n"
        writer.write(head + b"content-type: application/json\r\n\r\n")
        await writer.drain()
        writer.write(b" " * 90_000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 ")
    assert await bytes_accepted_after(b"GET /items/1 HTTP/1.1\r\nx: ") < MAX_SENT


CHUNKED = (
    b"POST /nothing HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
)


async def test_trailers_are_ignored_and_bounded() -> None:
    """R34: they are neither merged into the headers (RFC 9110 6.5.1) nor endless."""
    async with connected() as (reader, writer):
        head = b"GET /items/1 HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head + b"0\r\naccept: text/nothing\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert await bytes_accepted_after(CHUNKED + b"x: ") < MAX_SENT


@pytest.mark.parametrize(
    "drip", [CHUNKED + b"x: ", b"GET /items/1 HTTP/1.1\r\nHost: x\r\n\r\n"]
)
async def test_dripping_bytes_do_not_keep_a_connection(drip: bytes) -> None:
    """R35: the rest of an answered request, or line breaks after one."""
    async with connected() as (reader, writer):
        writer.write(drip)
        ended = asyncio.ensure_future(reader.read(-1))
        async with asyncio.timeout(4):
            with suppress(ConnectionError):
                while not (await asyncio.wait([ended], timeout=0.1))[0]:
                    writer.write(b"\r\n" if drip.endswith(b"\r\n") else b"a")
                    await writer.drain()
                await ended


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HTTP/1.1\r\nHost: x", b"200"),
        (b"HTTP/1.0", b"200"),
        (b"HTTP/1.1", b"400"),
        (b"HTTP/1.1\r\nHost: x\r\nHost: x", b"400"),
        (b"HTTP/1.0\r\nHost: x\r\nhost: y", b"400"),
        (b"HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked", b"400"),
    ],
)
async def test_ambiguous_framing_is_refused(head: bytes, status: bytes) -> None:
    """RFC 9112 3.2 and 6.1: one Host, and chunked as the only transfer coding."""
    async with connected() as (reader, writer):
        writer.write(b"GET /items/1 " + head + b"\r\n\r\n")
        assert (await reader.readline()).split()[1] == status


async def test_stream_over_http_1_0_is_refused() -> None:
    """RFC 9112 6.1: HTTP/1.0 has no chunked coding."""
    async with connected(FakePort(stream=events("a"))) as (reader, writer):
        writer.write(b"GET /items:watch HTTP/1.0\r\n\r\n")
        answer = await reader.read(-1)
    assert answer.startswith(b"HTTP/1.1 426 ")
    assert b"upgrade: HTTP/1.1" in answer


async def test_client_that_does_not_read_is_disconnected() -> None:
    """R35: an answer that a client does not read is dropped after a while."""
    large = FakePort(item(id=1, name="x" * 2**25))
    async with connected(large) as (reader, writer):
        writer.write(b"GET /items/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        await asyncio.sleep(1.5)  # three times its write timeout
        with pytest.raises((ConnectionError, EOFError)):
            await reader.readexactly(2**25)


SILENCE = 0.4  # seconds


async def answers(*parts: bytes, port: FakePort | None = None) -> list[int]:
    """Send each part by itself; return the status of every answer until silence."""
    received = b""
    async with connected(port) as (reader, writer):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)
        with suppress(ConnectionError, TimeoutError):
            while answer := await asyncio.wait_for(reader.read(65_536), SILENCE):
                received += answer
    return [int(rest[:3]) for rest in received.split(b"HTTP/1.1 ")[1:]]


def post(body: bytes, *headers: bytes, length: bytes | None = None) -> bytes:
    """Return a request that creates an item."""
    framing = length or b"Content-Length: %d" % len(body)
    kind = b"Content-Type: application/json"
    lines = (b"POST /items HTTP/1.1", b"Host: x", kind, *headers, framing, b"", body)
    return b"\r\n".join(lines)


SECOND = b"DELETE /items/9 HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED_BODY = b"2\r\n{}\r\n0\r\n\r\n"


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"foo, TLS/1.0"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("whole", [False, True])
async def test_upgrade_offer_with_a_body_is_ignored(
    protocol: bytes, chunked: bool, whole: bool
) -> None:
    """RFC 9110 7.8: the body is read as a body, however the bytes arrive."""
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + protocol)
    body = SECOND if not chunked else b"%x\r\n%s\r\n0\r\n\r\n" % (len(SECOND), SECOND)
    length = b"Transfer-Encoding: chunked" if chunked else None
    request = post(body, *offer, length=length)
    port = FakePort(item(id=1))
    head = request[: -len(body)]
    parts = [request] if whole else [head, body[:5], body[5:]]
    assert await answers(*parts, port=port) == [400]  # the body is no JSON
    assert port.calls == []


async def test_upgrade_offer_leaves_the_requests_around_it_alone() -> None:
    """Every pipelined request has one answer, in order."""
    offer = (b"Connection: Upgrade", b"Upgrade: h2c")
    fixed = post(b"{}", *offer)
    chunked = post(CHUNKED_BODY, *offer, length=b"Transfer-Encoding: chunked")
    without = b"GET /items/1 HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % b"\r\n".join(offer)
    port = FakePort(item(id=1))
    sent = SECOND + fixed + SECOND + chunked + without + SECOND
    assert await answers(sent, port=port) == [204, 201, 204, 201, 200, 204]
    names = [call.rpartition("/")[2] for call in port.calls]
    assert names[1::2] == ["CreateItem", "CreateItem", "DeleteItem"]


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_connect_is_refused_and_nothing_behind_it_is_read(head: bytes) -> None:
    """What follows a CONNECT or the preface of HTTP/2 is not HTTP/1."""
    port = FakePort(item(id=1))
    assert await answers(head, SECOND, port=port) == [400]
    assert port.calls == []


@pytest.mark.parametrize("rest", [b"BROKEN\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
async def test_invalid_request_is_answered_after_the_valid_one_before(
    rest: bytes,
) -> None:
    """A pipelined request keeps its answer; the connection is closed after it."""
    port = FakePort(item(id=1))
    for parts in ([SECOND + SECOND + rest + SECOND], [SECOND + SECOND, rest, SECOND]):
        assert await answers(*parts, port=port) == [204, 204, 400]
    assert len(port.calls) == 4


async def test_endless_headers_leave_the_answer_before_them() -> None:
    """A pipelined request keeps its answer also where the next one is too large."""

    async def pause() -> None:
        await asyncio.sleep(0.3)

    port = FakePort(item(id=1), then=pause)
    endless = b"GET / HTTP/1.1\r\nx: " + b"x" * 40_000
    assert await answers(SECOND + endless, port=port) == [204]


async def test_invalid_body_gets_one_answer() -> None:
    """A chunk without a size is 400, and a request answered before gets no second."""
    broken = post(b"X\r\n\r\n", length=b"Transfer-Encoding: chunked")
    port = FakePort(item(id=1))
    assert await answers(broken, SECOND, port=port) == [400]
    assert await answers(SECOND + broken, SECOND, port=port) == [204, 400]
    head, _, _ = broken.rpartition(b"X\r\n\r\n")
    refused = head.replace(b"application/json", b"text/plain")
    early = refused.replace(b"/items", b"/nowhere")
    assert await answers(early, b"X\r\n\r\n", SECOND, port=port) == [404]
    assert [call.rpartition("/")[2] for call in port.calls] == ["DeleteItem"]


OFFER = b"GET /items/1 HTTP/1.1\r\nHost:a\r\nConnection:upgrade\r\nUpgrade:x\r\n\r\n"
PLAIN = b"GET /items/1 HTTP/1.1\r\nHost:a\r\n\r\n"


@pytest.mark.parametrize("request_", [OFFER, PLAIN])
async def test_pipelined_requests_of_one_read_have_an_answer_each(
    request_: bytes,
) -> None:
    """Their number is limited neither by the stack nor by the size of a read."""
    count = 2**16 // len(request_) + 1
    port = FakePort(item(id=1))
    received = b""
    async with connected(port) as (reader, writer), asyncio.timeout(20):
        writer.write(request_ * (count - 1) + b"BROKEN\r\n\r\n")
        received = await reader.read(-1)
    statuses = [int(rest[:3]) for rest in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200] * (count - 1) + [400]


async def test_pipelined_requests_that_wait_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that sends on while its first request runs is no longer read."""
    protocols: list[ImpatientProtocol] = []
    made = ImpatientProtocol.connection_made

    def recorded(self: ImpatientProtocol, transport: asyncio.Transport) -> None:
        protocols.append(self)
        made(self, transport)

    monkeypatch.setattr(ImpatientProtocol, "connection_made", recorded)
    release = asyncio.Event()

    async def wait() -> None:
        await release.wait()

    async with connected(FakePort(item(id=1), then=wait)) as (reader, writer):
        for _ in range(40):
            writer.write(PLAIN * 1000)
            await asyncio.sleep(0.01)
        assert 0 < len(protocols[0].pipeline) <= 200
        assert protocols[0].flow.read_paused
        release.set()
        assert (await reader.readline()).split()[1] == b"200"


class WatchedPort(FakePort):
    """Answers nothing; counts what runs, and the messages that its stream made."""

    def __init__(self) -> None:
        super().__init__(then=self._wait, stream=self._messages)
        self.running = asyncio.Event()
        self.ended = asyncio.Event()
        self.produced = 0

    async def _wait(self) -> None:
        self.running.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def _messages(self) -> AsyncIterator[bytes]:
        self.running.set()
        message = kind("WatchItemsResponse")(name="x" * 10_000).SerializeToString()
        try:
            while True:
                self.produced += 1
                yield message
        finally:
            self.ended.set()


@pytest.mark.parametrize("path", [b"/items/1", b"/items:watch"])
async def test_disconnected_client_ends_its_call(path: bytes) -> None:
    """Work for a client that has left ends, of a unary call and of a stream."""
    port = WatchedPort()
    async with connected(port) as (_, writer), asyncio.timeout(5):
        writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        await port.running.wait()
        writer.transport.abort()
        await port.ended.wait()


async def test_stream_that_is_not_read_ends() -> None:
    """R35: few messages wait for the client, and they do not wait for ever."""
    port = WatchedPort()
    async with connected(port) as (reader, writer), asyncio.timeout(10):
        writer.write(b"GET /items:watch HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        await port.ended.wait()
        assert port.produced < 10_000
