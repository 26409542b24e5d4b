"""The port through which the edge calls services, and its implementation over gRPC.

The composition provides the port within the same process.
"""

import logging
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import grpc

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Reply:
    """A unary reply: the serialised message and the call's metadata."""

    message: bytes
    headers: Metadata = ()
    trailers: Metadata = ()


class StreamReply(Protocol):
    """An iterator of serialised messages.

    `headers` are known before the first item, `trailers` after the last. Reading an
    item may raise CallError; `aclose`, if it exists, cancels the call.
    """

    headers: Metadata
    trailers: Metadata

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return the messages, in order."""


class CallPort(Protocol):
    """Calls services; `method` is "/pkg.Service/Method".

    `timeout` is in seconds. A call with a status other than OK raises CallError.
    """

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109  # the callee keeps the deadline
    ) -> Reply:
        """Call a unary method."""

    def server_stream(
        self, method: str, request: bytes, *, metadata: Metadata, timeout: float | None
    ) -> StreamReply:
        """Call a server-streaming method."""


@dataclass(eq=False)
class CallError(Exception):
    """A call with a status other than OK.

    `status` is a serialised google.rpc.Status with the details; `code` and `message`
    take precedence over the ones in it.
    """

    code: int
    message: str
    status: bytes = b""
    headers: Metadata = ()
    trailers: Metadata = ()


_log = logging.getLogger("edge")
# gRPC's own messages contain addresses of the service, which clients must not see.
_ADDRESS = re.compile(r"\b(ipv4|ipv6|unix|dns|vsock):")
_UNAVAILABLE: int = grpc.StatusCode.UNAVAILABLE.value[0]
_DEADLINE_EXCEEDED: int = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
UNREACHABLE = "the service is unavailable: retry later"


# Seconds. gRPC counts nanoseconds in 64 bits: a deadline beyond 292 years overflows.
_MAX_TIMEOUT = 365 * 86_400.0


def _clamped(timeout: float | None) -> float | None:
    return None if timeout is None else min(timeout, _MAX_TIMEOUT)


def _metadata(received: Any) -> Metadata:
    return tuple(received or ())


def _call_error(error: grpc.aio.AioRpcError) -> CallError:
    headers = _metadata(error.initial_metadata())
    trailers = _metadata(error.trailing_metadata())
    status: Any = dict(trailers).get("grpc-status-details-bin", b"")
    code, message = error.code().value[0], error.details() or ""
    if code == _UNAVAILABLE and _ADDRESS.search(message):
        _log.warning("call failed: %s", message)
        message = UNREACHABLE
    elif code == _DEADLINE_EXCEEDED and not status:  # the channel's own deadline
        message = "deadline exceeded"
    return CallError(code, message, status, headers, trailers)


class _RemoteStream:
    """A server stream over a channel."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.headers: Metadata = ()
        self.trailers: Metadata = ()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            self.headers = _metadata(await self._call.initial_metadata())
            async for message in self._call:
                yield message
            self.trailers = _metadata(await self._call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            raise _call_error(error) from error
        finally:
            self._call.cancel()


# Replies have no size limit, as in process.
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1),)


class RemotePort:
    """The port over one gRPC channel; message bytes are passed on unchanged.

    Cancelling a call cancels it on the server, too.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # One multi-callable for each method: creating one costs more than a call.
        self._unary: Any = cache(channel.unary_unary)
        self._stream: Any = cache(channel.unary_stream)

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109  # the callee keeps the deadline
    ) -> Reply:
        """Call over the channel; raises CallError."""
        timeout = _clamped(timeout)
        call = self._unary(method)(request, metadata=tuple(metadata), timeout=timeout)
        try:
            message = await call
            headers = _metadata(await call.initial_metadata())
            return Reply(message, headers, _metadata(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            raise _call_error(error) from error

    def server_stream(
        self, method: str, request: bytes, *, metadata: Metadata, timeout: float | None
    ) -> StreamReply:
        """Call over the channel; the stream raises CallError."""
        start, timeout = self._stream(method), _clamped(timeout)
        return _RemoteStream(start(request, metadata=tuple(metadata), timeout=timeout))
