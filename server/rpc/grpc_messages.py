"""Receiving and sending messages over gRPC, with a deadline for each.

gRPC has none: a client that sends half of a request, or reads no response, would hold
its call for as long as its connection lives.
"""

from __future__ import annotations

from time import monotonic
from typing import NoReturn

import grpc

from server.rpc.deadlines import Deadline, DeadlineTimer

Context = grpc.aio.ServicerContext[bytes, bytes]
RECEIPT_TIMEOUT_SECONDS = 10.0  # from the headers of a call to the end of its request
READ_TIMEOUT_SECONDS = 30.0  # for a client to make room for one more message


class ClientNotReading(Exception):
    """The client has not read enough of earlier messages in time."""


class MessageChannel:
    """Receives and sends the messages of calls; `timer` keeps the deadlines."""

    def __init__(
        self,
        timer: DeadlineTimer,
        receipt_timeout: float = RECEIPT_TIMEOUT_SECONDS,
        read_timeout: float = READ_TIMEOUT_SECONDS,
    ) -> None:
        self._timer = timer
        self._receipt_timeout = receipt_timeout
        self._read_timeout = read_timeout

    async def receive(self, context: Context) -> bytes:
        """Return the request of a call that has one; else abort the call."""
        try:
            with Deadline(self._timer, monotonic() + self._receipt_timeout):
                body = await context.read()
        except TimeoutError:
            message = f"the request did not arrive within {self._receipt_timeout:g} s"
            await context.abort(grpc.StatusCode.CANCELLED, message)
        if not isinstance(body, bytes):
            message = "the call ended without a request message"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        return body

    async def send(self, context: Context, message: bytes) -> None:
        """Send one message of a stream. Raises ClientNotReading."""
        try:
            with Deadline(self._timer, monotonic() + self._read_timeout):
                await context.write(message)
        except TimeoutError:
            raise ClientNotReading from None

    async def abort_unread(self, context: Context) -> NoReturn:
        """End a call whose client does not read; it finds the status if it goes on."""
        message = f"the client read nothing for {self._read_timeout:g} s: call again"
        await context.abort(grpc.StatusCode.UNAVAILABLE, message)
