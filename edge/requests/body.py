"""The second stage: receiving a request's body within its limits."""

import asyncio
import re

from edge.config import EdgeSettings
from edge.errors import HttpError
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

    async def read(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
        """Return a body without its content coding.

        Raises HttpError: 408 for a slow body, 413 for a large one, and what
        `decompress` raises; Disconnected.
        """
        length = headers.get(b"content-length", b"0")
        if _LONG_LENGTH.fullmatch(length):
            raise too_large(self._max_bytes)
        if not _LENGTH.fullmatch(length):
            raise HttpError("content-length must be a number")
        if int(length) > self._max_bytes:
            raise too_large(self._max_bytes)
        try:
            async with asyncio.timeout(self._timeout):
                body = await _receive_all(receive, self._max_bytes)
        except TimeoutError:
            message = "the request body did not arrive in time: retry"
            raise HttpError(message, "REQUEST_TIMEOUT", http=408) from None
        coding = headers.get(b"content-encoding")
        return decompress(body, coding, self._max_decompressed_bytes)


async def _receive_all(receive: Receive, limit: int) -> bytes:
    parts, size, more = [], 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise Disconnected
        part: bytes = event.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
        more = event.get("more_body", False)
    return b"".join(parts)
