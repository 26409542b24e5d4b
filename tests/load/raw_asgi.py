"""A raw ASGI app under uvicorn: the lowest cost of a REST answer of this size.

`python -m tests.load.raw_asgi FILE` answers every request with FILE's bytes and
prints its port.
"""

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Static:
    """Sends one constant response."""

    def __init__(self, body: bytes) -> None:
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        self._start = {
            "type": "http.response.start",
            "status": 200,
            "headers": headers,
        }
        self._body = {"type": "http.response.body", "body": body}

    async def __call__(self, _scope: object, _receive: object, send: Send) -> None:
        await send(self._start)
        await send(self._body)


async def serve(body: bytes) -> None:
    config = uvicorn.Config(
        Static(body),
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)  # noqa: T201 - the parent reads it
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(Path(sys.argv[1]).read_bytes()))
