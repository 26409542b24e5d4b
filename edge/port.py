"""How the edge calls a service: the port it needs, and the one over a gRPC channel.

The port in the same process comes from whoever composes the application.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
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

    @property
    def headers(self) -> Metadata:
        """The metadata sent before the first message."""

    @property
    def trailers(self) -> Metadata:
        """The metadata sent after the last message."""

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


class CallError(Exception):
    """A call that ended with another status than OK.

    `status` is a serialised google.rpc.Status that carries the details; `code`
    and `message` are the call's own and win over what stands in it.
    """

    def __init__(
        self,
        code: int,
        message: str,
        status: bytes = b"",
        headers: Metadata = (),
        trailers: Metadata = (),
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.status = status
        self.headers = headers
        self.trailers = trailers


def _metadata(received: object) -> Metadata:
    return tuple(received) if received else ()  # type: ignore[arg-type]


def _call_error(error: grpc.aio.AioRpcError) -> CallError:
    trailers = _metadata(error.trailing_metadata())
    status = next((v for k, v in trailers if k == "grpc-status-details-bin"), b"")
    return CallError(
        error.code().value[0],
        error.details() or "",
        status if isinstance(status, bytes) else b"",
        _metadata(error.initial_metadata()),
        trailers,
    )


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


class RemotePort:
    """The port over one gRPC channel; message bytes pass through untouched.

    Cancelling a call here (a client that went away) cancels it there.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._unary: dict[str, Any] = {}
        self._streams: dict[str, Any] = {}

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109  # gRPC's word: the callee keeps it
    ) -> Reply:
        """Call over the channel; raises CallError as every port does."""
        start = self._unary.get(method) or self._made(
            self._unary, self._channel.unary_unary, method
        )
        call = start(request, metadata=tuple(metadata), timeout=timeout)
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
        start = self._streams.get(method) or self._made(
            self._streams, self._channel.unary_stream, method
        )
        return _RemoteStream(start(request, metadata=tuple(metadata), timeout=timeout))

    @staticmethod
    def _made(known: dict[str, Any], make: Callable[..., Any], method: str) -> Any:
        """Keep one multi-callable per method: making one costs more than a call."""
        known[method] = make(method)
        return known[method]
