"""The second stage: receiving a request's body within its limits."""

import asyncio
import re

from edge.config import EdgeSettings
from edge.errors import HTTP_STATUS_BY_CODE, Code, HttpError
from edge.http.negotiation import decompress, too_large
from edge.http.streams import Disconnected, Receive

_LENGTH = re.compile(rb"[0-9]{1,18}")
_LONG_LENGTH = re.compile(rb"[0-9]{19,}")


class BodyReader:
    """Receives bodies within the limits of one application."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._max_bytes = settings.max_body_bytes
        self._max_decompressed_bytes = settings.max_decompressed_bytes
        self._timeout = settings.body_timeout
        self._idle_timeout = settings.body_idle_timeout
        self._max_received_bytes = settings.max_received_bytes
        self._received_bytes = 0  # of all bodies that are being received

    async def read(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
        """Return a body without its content coding.

        Raises HttpError: 408 for a slow body, 413 for a large one, 429 where too many
        are being received, and what `decompress` raises; Disconnected.
        """
        length = headers.get(b"content-length", b"0")
        if _LONG_LENGTH.fullmatch(length):
            raise too_large(self._max_bytes)
        if not _LENGTH.fullmatch(length):
            raise HttpError("content-length must be a number")
        if int(length) > self._max_bytes:
            raise too_large(self._max_bytes)
        try:
            body = await self._receive_all(receive)
        except TimeoutError:
            message = (
                "the request body did not arrive in time: send it within "
                f"{self._timeout:g} s, without a pause longer than "
                f"{self._idle_timeout:g} s"
            )
            close = (b"connection", b"close")  # RFC 9110 15.5.9
            raise HttpError(
                message, "REQUEST_TIMEOUT", http=408, headers=(close,)
            ) from None
        coding = headers.get(b"content-encoding")
        return decompress(body, coding, self._max_decompressed_bytes)

    async def _receive_all(self, receive: Receive) -> bytes:
        parts, size, more = [], 0, True
        clock = asyncio.get_running_loop().time
        end = clock() + self._timeout
        try:
            async with asyncio.timeout_at(end) as deadline:
                while more:
                    deadline.reschedule(min(clock() + self._idle_timeout, end))
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise Disconnected
                    part: bytes = event.get("body", b"")
                    size += len(part)
                    self._received_bytes += len(part)
                    self._check_sizes(size)
                    parts.append(part)
                    more = event.get("more_body", False)
        finally:
            self._received_bytes -= size
        return b"".join(parts)

    def _check_sizes(self, size: int) -> None:
        if size > self._max_bytes:
            raise too_large(self._max_bytes)
        if self._received_bytes > self._max_received_bytes:
            message, code = (
                "the service is overloaded: retry later",
                Code.RESOURCE_EXHAUSTED,
            )
            raise HttpError(
                message, "OVERLOADED", http=HTTP_STATUS_BY_CODE[code], code=code
            )
