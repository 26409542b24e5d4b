"""What the HTTP server must add to uvicorn: bounds for what a client owes."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class DeadlinedProtocol(HttpToolsProtocol):
    """Closes a connection whose client takes too long, or sends what is of no use.

    uvicorn waits for ever, keeps all that comes, and takes trailers for headers. For
    `uvicorn.Config(http=...)`; a subclass may say other bounds.
    """

    # seconds for a request's headers, from connecting or from its first byte, and for
    # the rest of a request that is answered already
    header_timeout = 10.0
    write_timeout = 30.0  # for a client to take what is sent to it
    header_bytes = 32 * 1024  # and what one read of the socket brings beyond it
    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _useless = 0  # bytes since the last that ended headers, were a body, or ended it
    _in_request = False
    _headed = False  # the request's headers are complete

    # uvicorn narrows asyncio's BaseTransport to what servers are given
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop()
        self._end_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come, unless headers or trailers go on and on."""
        self._useless += len(data)
        super().data_received(data)
        if self._useless > self.header_bytes:
            self.transport.close()
        elif self._useless and not self._in_request:
            self._wait()  # line breaks alone are no sign of life

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a request's headers."""
        super().on_message_begin()
        self._in_request, self._headed = True, False
        self._stop()
        self._wait()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers are none (RFC 9110 6.5.1)."""
        if not self._headed:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Wait no longer: the edge's own deadlines hold from here.

        A request says once whom it is for (RFC 9112 3.2), and its length in no way
        that somebody else may read otherwise (6.1); what is raised is 400.
        """
        self._stop()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() != "1.0"):
            raise ValueError("not one Host")
        for name, value in self.headers:
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                raise ValueError("a transfer coding that is not ours")
        self._headed, self._useless = True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._useless = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        self._in_request, self._useless = False, 0
        self._stop()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait a while for the rest of a request that is answered."""
        super().on_response_complete()
        cycle: Any = self.cycle
        if self._in_request and self._headed and cycle.response_complete:
            self._wait()

    def pause_writing(self) -> None:
        """Wait for the client to take what was sent."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Wait no longer."""
        super().resume_writing()
        self._end_stall()

    def _end_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _wait(self) -> None:
        if self._deadline is None:
            close = self.transport.close
            self._deadline = self.loop.call_later(self.header_timeout, close)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
