"""What the HTTP server must add to uvicorn: bounds for receiving headers."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class DeadlinedProtocol(HttpToolsProtocol):
    """Closes a connection whose request headers take too long, or too much room.

    uvicorn waits for ever, and keeps what comes. For `uvicorn.Config(http=...)`; a
    subclass may say other bounds.
    """

    header_timeout = 10.0  # seconds, from connecting or from a request's first byte
    header_bytes = 32 * 1024  # and what one read of the socket brings beyond it
    _deadline: asyncio.TimerHandle | None = None
    _held = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come, unless headers go on and on."""
        super().data_received(data)
        if self._deadline is None:
            return
        self._held += len(data)
        if self._held > self.header_bytes:
            self.transport.close()

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a request's headers."""
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        """Wait no longer: the edge's own deadlines hold from here."""
        self._stop()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._stop()
        self._held = 0
        close = self.transport.close
        self._deadline = self.loop.call_later(self.header_timeout, close)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
