"""The metrics listener: HTTP that answers `GET /metrics`, and nothing else.

It reads no more than the head of one request for each connection, so it needs no HTTP
library. Imports neither grpc nor the application: the supervisor of workers uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import structlog
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from server.composition.listeners.sockets import bind_metrics

Render = Callable[[], Awaitable[bytes]]
PATH = "/metrics"
MAX_HEAD_SIZE = 8 * 1024  # bytes
MAX_CONNECTIONS = 32
TIMEOUT_SECONDS = 5.0  # from the connection to the end of the response
log = structlog.get_logger()


@asynccontextmanager
async def listening_metrics(address: str, render: Render) -> AsyncIterator[int]:
    """Serve metrics on HOST:PORT or unix:PATH; yield the port, 0 for a path.

    An empty address turns the listener off. Raises CannotListen.
    """
    if not address:
        yield 0
        return
    page = _Page(render)
    with bind_metrics(address) as bound:
        server = await asyncio.start_server(page.serve, sock=bound, limit=MAX_HEAD_SIZE)
        name = bound.getsockname()
        port = name[1] if isinstance(name, tuple) else 0
        log.info("serving metrics", address=address, port=port)
        try:
            yield port
        finally:
            server.close()
            await page.close()


class _Page:
    """Serves each connection in a task of its own: a slow client delays no other."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        # Those that have not sent a request yet, the oldest first: an ordered set.
        self._idle: dict[asyncio.StreamWriter, None] = {}

    async def close(self) -> None:
        """End all connections.

        A task that was cancelled would be logged as a failure of asyncio's callback.
        """
        for writer in self._connections.values():
            writer.transport.abort()
        if self._connections:
            await asyncio.wait(self._connections)

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one request, then close the connection."""
        if len(self._connections) >= MAX_CONNECTIONS and not self._close_idle():
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # asyncio runs this in a task
        self._connections[task] = writer
        self._idle[writer] = None
        writer.transport.set_write_buffer_limits(0)  # drain() waits for the client
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                self._idle.pop(writer, None)
                writer.write(await self._response(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (
            TimeoutError,
            OSError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ):
            pass  # the client is slow, has left, or sends no request
        finally:
            writer.transport.abort()
            self._idle.pop(writer, None)
            del self._connections[task]

    def _close_idle(self) -> bool:
        """Close the connection that waits longest for a request, if one does."""
        oldest = next(iter(self._idle), None)
        if oldest is None:
            return False
        del self._idle[oldest]
        oldest.transport.abort()
        return True

    async def _response(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        target, _, version = rest.partition(b" ")
        if not version.startswith(b"HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST)
        if target.partition(b"?")[0] != PATH.encode():
            return _response(HTTPStatus.NOT_FOUND)
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD")
        try:
            body = await self._render()
        except Exception:
            log.exception("metrics cannot be rendered")
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR)
        content_type = f"Content-Type: {CONTENT_TYPE_PLAIN_0_0_4}"
        response = _response(HTTPStatus.OK, content_type, size=len(body))
        return response + body if method == b"GET" else response


def _response(status: HTTPStatus, *headers: str, size: int = 0) -> bytes:
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        *headers,
        f"Content-Length: {size}",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode()
