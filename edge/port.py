"""How the edge calls a service: the port it needs, and the one over a gRPC channel.

The port in the same process comes from whoever composes the application.
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
    """A unary answer: the message on the wire, and the call's metadata."""

    message: bytes
    headers: Metadata = ()
    trailers: Metadata = ()


class StreamReply(Protocol):
    """A stream of message bytes.

    `headers` are known before the first item, `trailers` after the last. An
    item may raise CallError; `aclose`, where there is one, cancels the call.
    """

    headers: Metadata
    trailers: Metadata

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the messages, in order."""


class CallPort(Protocol):
    """What the edge needs of a service; `method` is "/pkg.Service/Method".

    `timeout` is in seconds. A call that ends other than OK raises CallError.
    """

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109  # gRPC's word: the callee keeps it
    ) -> Reply:
        """Call a method that has one answer."""

    def server_stream(
        self, method: str, request: bytes, *, metadata: Metadata, timeout: float | None
    ) -> StreamReply:
        """Call a method that has any number of answers."""


@dataclass(eq=False)
class CallError(Exception):
    """A call that ended with another status than OK.

    `status` is a serialised google.rpc.Status that carries the details; `code`
    and `message` are the call's own and win over what stands in it.
    """

    code: int
    message: str
    status: bytes = b""
    headers: Metadata = ()
    trailers: Metadata = ()


_log = logging.getLogger("edge")
# What gRPC itself says of a connection names addresses, which are nobody's business.
_ADDRESS = re.compile(r"\b(ipv4|ipv6|unix|dns|vsock):")
_UNAVAILABLE: int = grpc.StatusCode.UNAVAILABLE.value[0]
_DEADLINE_EXCEEDED: int = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
UNREACHABLE = "the service cannot be reached: try again"


# gRPC counts nanoseconds in 64 bits: beyond 292 years a deadline has passed.
_LONGEST = 365 * 86_400.0


def _clamped(timeout: float | None) -> float | None:
    return None if timeout is None else min(timeout, _LONGEST)


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
    elif code == _DEADLINE_EXCEEDED and not status:  # ours has passed first
        message = "deadline exceeded"
    return CallError(code, message, status, headers, trailers)


class _RemoteStream:
    """One server stream of a channel, as a StreamReply."""

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


# Answers are as large as the service makes them, as they are in process.
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1),)


class RemotePort:
    """The port over one gRPC channel; message bytes pass through untouched.

    Cancelling a call here (a client that went away) cancels it there.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # One multi-callable per method: making one costs more than a call.
        self._unary: Any = cache(channel.unary_unary)
        self._stream: Any = cache(channel.unary_stream)

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109  # gRPC's word: the callee keeps it
    ) -> Reply:
        """Call over the channel; raises CallError as every port does."""
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
        """Call over the channel; the stream raises CallError as every port's does."""
        start, timeout = self._stream(method), _clamped(timeout)
        return _RemoteStream(start(request, metadata=tuple(metadata), timeout=timeout))
