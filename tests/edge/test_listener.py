"""The deadline for receiving headers, on a real socket."""

import asyncio

import pytest
import uvicorn

from edge.app import create_app
from edge.listener import DeadlinedProtocol
from tests.edge.service import Port, compiled
from tests.edge.test_manners import SHOP, item


class Hasty(DeadlinedProtocol):
    header_timeout = 0.1


@pytest.mark.parametrize("part", [b"", b"GET /items/1 HTTP/1.1\r\nHost: x\r\n"])
async def test_headers_that_do_not_come_close_the_connection(part: bytes) -> None:
    """R35: from connecting, and from a request's first byte."""
    app = create_app(compiled(SHOP), Port(item(id=1)))
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
        good = b"GET /items/1 HTTP/1.1\r\nHost: x\r\n\r\n" if part else b""
        writer.write(good + part)
        async with asyncio.timeout(2):
            told = await reader.read(-1)
        assert told.startswith(b"HTTP/1.1 200") if part else told == b""
        writer.close()
    finally:
        await server.shutdown()
