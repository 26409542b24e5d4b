"""What the HTTP server must add to uvicorn: a deadline for receiving headers."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class DeadlinedProtocol(HttpToolsProtocol):
    """Closes a connection whose request headers take too long (uvicorn waits for ever).

    For `uvicorn.Config(http=DeadlinedProtocol)`; a subclass may say another time.
    """

    header_timeout = 10.0  # seconds, from connecting or from a request's first byte
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop()
        super().connection_lost(exc)

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
        close = self.transport.close
        self._deadline = self.loop.call_later(self.header_timeout, close)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
