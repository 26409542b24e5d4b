"""HTTP/1 protocol for uvicorn: time and size limits, and no ambiguous requests."""

import asyncio
from collections.abc import Sized
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edge.connections import (
    MAX_REFUSED_CONNECTIONS,
    ConnectionLimits,
    refuse_connection,
)
from edge.http.trusted_proxies import TrustedProxies
from edge.observation import OTHER, Observe

Header = tuple[bytes, bytes]
# Bytes that are parsed at a time: it bounds the requests that wait on a connection.
_PARSE_SIZE = 4 * 1024
_REFUSAL_TIMEOUT = 1.0  # seconds for the headers on a connection beyond the limits


class _PipelineFlow(FlowControl):
    """Read nothing while a request waits for the answers to earlier ones."""

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Resume, unless a request waits; each running request asks for it."""
        if not self._pipeline:
            super().resume_reading()


class DeadlinedProtocol(HttpToolsProtocol):
    """Close a connection whose client is too slow or sends useless bytes.

    Beyond that it keeps requests apart: an offer to upgrade is ignored, so that the
    bytes of a body are never read as a request, and an invalid request is answered
    after the valid ones before it. While requests wait for earlier answers, no more
    are parsed. Pass it to `uvicorn.Config(http=...)`; a subclass
    may change the limits.
    """

    # Seconds for a request's headers, counted from the connection or from the first
    # byte, and for the rest of a request that is answered already.
    header_timeout = 10.0
    write_timeout = 30.0  # seconds for a client to read what is sent to it
    header_bytes = 32 * 1024  # one read of the socket may exceed it
    limits = ConnectionLimits(TrustedProxies(()))
    # Of requests that the application does not see: their method and path are invalid,
    # or not read.
    observe: Observe | None = None
    _admitted = True
    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None
    _unused_bytes = 0  # since the last end of headers, part of a body, or end of it
    _unparsed = memoryview(b"")  # received while requests wait
    _unanswered = 0  # requests whose headers are complete
    _in_request = False
    _headers_complete = False
    _upgrade_offered = False
    # No more requests are read, and this is what they are answered; "": nothing.
    _refusal: str | None = None

    # uvicorn narrows asyncio's BaseTransport to what servers get
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline for the first request."""
        super().connection_made(transport)
        self.flow = _PipelineFlow(transport, self.pipeline)
        self._admitted = self.limits.admit(self._peer())
        if not self._admitted:
            self.app = refuse_connection
            self.header_timeout = min(self.header_timeout, _REFUSAL_TIMEOUT)
            if self.limits.refused > MAX_REFUSED_CONNECTIONS:
                transport.abort()
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all deadlines."""
        self.limits.release(self._peer(), admitted=self._admitted)
        self._stop_deadline()
        self._stop_write_deadline()
        self._unparsed = memoryview(b"")
        super().connection_lost(exc)

    def _peer(self) -> str:
        return self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; refuse headers or trailers without an end."""
        self._unused_bytes += len(data)
        if self._unparsed:
            data = bytes(self._unparsed) + data
        self._unparsed = memoryview(data)
        self._parse_received()

    def _parse_received(self) -> None:
        """Parse what is received, until a request must wait for earlier answers."""
        while self._unparsed and not self.pipeline and self._refusal is None:
            part = self._unparsed[:_PARSE_SIZE]
            self._unparsed = self._unparsed[_PARSE_SIZE:]
            self._parse(part)
        if self._unparsed or self._refusal is not None:
            return
        if self._unused_bytes > self.header_bytes:
            self._refuse("")
        elif self._in_request:
            if not self._headers_complete:
                self._start_deadline()
        elif self._unused_bytes:  # line breaks alone are no sign of life
            self._start_deadline()

    def _parse(self, data: memoryview) -> None:
        """Parse bytes; a request that offers an upgrade is read again without it."""
        self._unset_keepalive_if_required()
        parts: list[bytes | memoryview] = [data]
        while parts:
            part = parts.pop()
            try:
                self.parser.feed_data(part)
            except httptools.HttpParserUpgrade as upgrade:
                parts += [part[upgrade.args[0] :], self._head_without_upgrade()]
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return

    def _head_without_upgrade(self) -> bytes:
        """Return a request's head without its offer to upgrade (RFC 9110 7.8).

        The parser takes whatever follows such a head for another protocol, a body
        included, so a new parser reads the head again.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0] != b"upgrade"]
        self._upgrade_offered = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join((*lines, b"", b""))

    def send_400_response(self, msg: str) -> None:
        """Answer 400 and close, after the requests before have their answers."""
        self._refuse(msg)

    def _refuse(self, message: str = "") -> None:
        """Read no more; close with a 400, or without where there is no message."""
        if self._refusal is not None:
            return
        self._refusal = message
        self._stop_deadline()
        if self._in_request and self._headers_complete:
            self._abandon_request()
        if not self._unanswered:
            self._close()

    def _abandon_request(self) -> None:
        """End a request whose body is invalid; it gets one answer at most."""
        cycle: Any = self.cycle
        if cycle.response_complete or cycle.response_started:
            self._refusal = ""
        if not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            self._unanswered -= 1
            if self._unanswered:
                self.pipeline.popleft()  # the newest, which has not started

    def _close(self) -> None:
        if self._refusal and not self.transport.is_closing():
            super().send_400_response(self._refusal)
            self._observe_refusal(400)
        self.transport.close()

    def _observe_refusal(self, status: int) -> None:
        if self.observe:
            self.observe(OTHER, OTHER, status, 0.0)

    def on_message_begin(self) -> None:
        """Stop the deadline for a request's first byte.

        The one for its headers starts if they are incomplete when the data ends.
        """
        super().on_message_begin()
        self._in_request, self._headers_complete = True, False
        self._stop_deadline()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a trailer is not one (RFC 9110 6.5.1).

        As uvicorn's, which it does not call: that costs 1 us a request.
        """
        if self._headers_complete:
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the headers and start the request; its deadline is the edge's now.

        Raises ValueError, which is answered with 400.
        """
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("the method CONNECT is not supported")
            self._upgrade_offered = True  # the request starts when it is read again
            return
        self._stop_deadline()
        _check_framing(self.headers, self.parser.get_http_version())
        self._headers_complete, self._unused_bytes = True, 0
        super().on_headers_complete()
        self._unanswered += 1

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body."""
        self._unused_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        if self._upgrade_offered:
            return
        self._in_request, self._unused_bytes = False, 0
        self._stop_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on reading; start a deadline for the rest of an answered request."""
        super().on_response_complete()
        self._unanswered -= 1
        if not self._admitted:
            self._observe_refusal(429)
        if self._refusal is not None:
            if not self._unanswered:
                self._close()
            return
        cycle: Any = self.cycle
        if self._in_request and self._headers_complete and cycle.response_complete:
            self._start_deadline()
        if not self.pipeline and not self.transport.is_closing():
            self._parse_received()
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        """Start the deadline for the client to read."""
        super().pause_writing()
        abort = self.transport.abort
        self._write_deadline = self.loop.call_later(self.write_timeout, abort)

    def resume_writing(self) -> None:
        """Stop the deadline for the client to read."""
        super().resume_writing()
        self._stop_write_deadline()

    def _stop_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.header_timeout, self._refuse)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def limited_protocol(
    limits: ConnectionLimits, observe: Observe | None = None
) -> type[DeadlinedProtocol]:
    """Return the protocol of a listener with its own limits of connections."""
    values = {"limits": limits, "observe": observe and staticmethod(observe)}
    return type("LimitedProtocol", (DeadlinedProtocol,), values)


def _check_framing(headers: list[Header], version: str) -> None:
    """Raise ValueError where another party could read the request differently.

    A request names its host once (RFC 9112 3.2), and its length in one way (6.1).
    """
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding" and value.lower() != b"chunked":
            raise ValueError("the only supported transfer coding is chunked")
    if hosts > 1 or (not hosts and version != "1.0"):
        raise ValueError("a request must have exactly one Host header")
