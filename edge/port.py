"""The port through which the edge calls a service, and its gRPC implementation.

The application's composition provides the in-process implementation.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import grpc

from edge.errors import DEADLINE_MESSAGE
from edge.remote.outages import OutageLog

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of a unary call: the serialized message and the metadata."""

    message: bytes
    headers: Metadata = ()
    trailers: Metadata = ()


class StreamReply(Protocol):
    """A stream of serialized messages.

    `headers` are set before the first message, `trailers` after the last. Reading a
    message may raise CallError. `aclose` of the iterator cancels the call.
    """

    headers: Metadata
    trailers: Metadata

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return an iterator over the messages, in order."""


class CallPort(Protocol):
    """What the edge needs of a service. `method` is "/pkg.Service/Method".

    `timeout` is in seconds. A call that does not end with OK raises CallError.
    """

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109  # gRPC's term: the callee enforces it
    ) -> Reply:
        """Call a unary method."""

    def server_stream(
        self, method: str, request: bytes, *, metadata: Metadata, timeout: float | None
    ) -> StreamReply:
        """Call a server streaming method."""


@dataclass(eq=False)
class CallError(Exception):
    """A call that ended with a status other than OK.

    `status` is a serialized google.rpc.Status with the error details. If its code or
    message differ, `code` and `message` are the valid ones.
    """

    code: int
    message: str
    status: bytes = b""
    headers: Metadata = ()
    trailers: Metadata = ()


# gRPC's own messages about a connection contain addresses, which stay internal.
_ADDRESS = re.compile(r"\b(ipv4|ipv6|unix|dns|vsock):")
_UNAVAILABLE: int = grpc.StatusCode.UNAVAILABLE.value[0]
_DEADLINE_EXCEEDED: int = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
UNREACHABLE = "the service cannot be reached: retry"
# gRPC counts nanoseconds in 64 bits: a deadline beyond 292 years counts as passed.
_MAX_TIMEOUT = 365 * 86_400.0  # seconds


def _clamped(timeout: float | None) -> float | None:
    return None if timeout is None else min(timeout, _MAX_TIMEOUT)


def _metadata(received: Any) -> Metadata:
    return tuple(received or ())


def _call_error(error: grpc.aio.AioRpcError, outages: OutageLog) -> CallError:
    headers = _metadata(error.initial_metadata())
    trailers = _metadata(error.trailing_metadata())
    status: Any = dict(trailers).get("grpc-status-details-bin", b"")
    code, message = error.code().value[0], error.details() or ""
    if code == _UNAVAILABLE and _ADDRESS.search(message):
        outages.begin(message)
        message = UNREACHABLE
    elif code == _DEADLINE_EXCEEDED and not status:  # detected by this client
        message = DEADLINE_MESSAGE
    return CallError(code, message, status, headers, trailers)


class _RemoteStream:
    """A server stream of a channel, as a StreamReply."""

    def __init__(self, call: Any, outages: OutageLog) -> None:
        self._call = call
        self._outages = outages
        self.headers: Metadata = ()
        self.trailers: Metadata = ()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            self.headers = _metadata(await self._call.initial_metadata())
            async for message in self._call:
                self._outages.end()
                yield message
            self.trailers = _metadata(await self._call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            raise _call_error(error, self._outages) from error
        finally:
            self._call.cancel()


CHANNEL_OPTIONS = (
    # No limit on the size of responses, as in process.
    ("grpc.max_receive_message_length", -1),
    # By default a server that has restarted is tried again after a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # A server that vanished without closing the connection is noticed within 5 s: a
    # ping every 3 s while there are calls, and 1.5 s for its answer.
    ("grpc.keepalive_time_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 1_500),
)


class RemotePort:
    """The port over one gRPC channel. Messages pass through as bytes.

    Cancelling a call here (the client disconnected) cancels it on the server.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # One multi-callable per method: creating one costs more than a call.
        self._unary: Any = cache(channel.unary_unary)
        self._stream: Any = cache(channel.unary_stream)
        self._outages = OutageLog()

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109  # gRPC's term: the callee enforces it
    ) -> Reply:
        """Call a unary method. Raises CallError."""
        timeout = _clamped(timeout)
        call = self._unary(method)(request, metadata=tuple(metadata), timeout=timeout)
        try:
            message = await call
            self._outages.end()
            headers = _metadata(await call.initial_metadata())
            return Reply(message, headers, _metadata(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            raise _call_error(error, self._outages) from error

    def server_stream(
        self, method: str, request: bytes, *, metadata: Metadata, timeout: float | None
    ) -> StreamReply:
        """Call a server streaming method. The stream raises CallError."""
        start, timeout = self._stream(method), _clamped(timeout)
        call = start(request, metadata=tuple(metadata), timeout=timeout)
        return _RemoteStream(call, self._outages)
