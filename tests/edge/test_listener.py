"""The bounds for receiving headers, on a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn

from edge.app import create_app
from edge.listener import DeadlinedProtocol
from tests.edge.service import Port, compiled
from tests.edge.test_http import SHOP, events, item

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Hasty(DeadlinedProtocol):
    header_timeout = 0.5
    write_timeout = 0.5


@asynccontextmanager
async def connected(answer: Port | None = None) -> AsyncIterator[Ends]:
    """Give a connection to a server that has little patience."""
    app = create_app(compiled(SHOP), answer or Port(item(id=1)))
    config = uvicorn.Config(
        app, port=0, http=Hasty, lifespan="off", log_level="critical"
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        number = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        try:
            yield reader, writer
        finally:
            writer.close()
    finally:
        await server.shutdown()


@pytest.mark.parametrize("part", [b"", b"GET /items/1 HTTP/1.1\r\nHost: x\r\n"])
async def test_headers_that_do_not_come_close_the_connection(part: bytes) -> None:
    """R35: from connecting, and from a request's first byte."""
    async with connected() as (reader, writer):
        good = b"GET /items/1 HTTP/1.1\r\nHost: x\r\n\r\n" if part else b""
        writer.write(good + part)
        async with asyncio.timeout(2):
            told = await reader.read(-1)
        assert told.startswith(b"HTTP/1.1 200") if part else told == b""


MUCH = 2**26


async def taken_behind(head: bytes) -> int:
    """Send more and more behind a head; give how much goes until it is closed."""
    sent = 0
    async with connected() as (_, writer), asyncio.timeout(10):
        writer.write(head)
        with suppress(ConnectionError):
            while not writer.is_closing() and sent < MUCH:
                writer.write(b"a" * 65_536)
                sent += 65_536
                await writer.drain()
                await asyncio.sleep(0)
    return sent


async def test_headers_that_go_on_and_on_close_the_connection() -> None:
    """R34: what comes is not kept without bound; a large body is no such thing."""
    async with connected() as (reader, writer):
        head = b"POST /items HTTP/1.1\r\nHost: x\r\ncontent-length: 90000\r\n"
        writer.write(head + b"content-type: application/json\r\n\r\n")
        await writer.drain()
        writer.write(b" " * 90_000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 ")
    assert await taken_behind(b"GET /items/1 HTTP/1.1\r\nx: ") < MUCH


CHUNKED = (
    b"POST /nothing HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
)


async def test_trailers_are_no_headers_and_have_an_end() -> None:
    """R34: RFC 9110 6.5.1; they are neither merged nor kept without bound."""
    async with connected() as (reader, writer):
        head = b"GET /items/1 HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head + b"0\r\naccept: text/nothing\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert await taken_behind(CHUNKED + b"x: ") < MUCH


@pytest.mark.parametrize(
    "drip", [CHUNKED + b"x: ", b"GET /items/1 HTTP/1.1\r\nHost: x\r\n\r\n"]
)
async def test_dripping_keeps_no_connection(drip: bytes) -> None:
    """R35: neither the rest of an answered request, nor line breaks behind one."""
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
async def test_what_proxies_may_read_otherwise(head: bytes, status: bytes) -> None:
    """RFC 9112 3.2 and 6.1: one Host, and no coding that we do not take."""
    async with connected() as (reader, writer):
        writer.write(b"GET /items/1 " + head + b"\r\n\r\n")
        assert (await reader.readline()).split()[1] == status


async def test_a_stream_needs_chunks() -> None:
    """RFC 9112 6.1: a client of HTTP/1.0 gets none."""
    async with connected(Port(stream=events("a"))) as (reader, writer):
        writer.write(b"GET /items:watch HTTP/1.0\r\n\r\n")
        told = await reader.read(-1)
    assert told.startswith(b"HTTP/1.1 426 ")
    assert b"upgrade: HTTP/1.1" in told


async def test_who_does_not_read_loses_the_connection() -> None:
    """R35: what is sent to a client does not wait for it without end."""
    large = Port(item(id=1, name="x" * 2**25))
    async with connected(large) as (reader, writer):
        writer.write(b"GET /items/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        await asyncio.sleep(1.5)  # three times what it is given
        with pytest.raises((ConnectionError, EOFError)):
            await reader.readexactly(2**25)
