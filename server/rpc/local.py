"""The interceptor chain called in process, for an edge without a network hop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar, cast

import grpc

from server.observability.metrics.calls import CallMetrics
from server.rpc.addresses import ProxyTrust
from server.rpc.call import Call, Failure, Method, Proceed, Stream
from server.rpc.interceptors.logging import record_unknown_call
from server.rpc.listener import STATUS_DETAILS_KEY, build_call

Pairs = Sequence[tuple[str, str | bytes]]
Reply = TypeVar("Reply")


class LocalPort(Generic[Reply]):
    """Calls RPCs in this process. Its caller is trusted to set the client address.

    `reply(message, headers, trailers)` builds the results and
    `error(code, message, status, headers, trailers)` the exceptions, so that this
    module does not depend on the edge.
    """

    def __init__(
        self,
        served: Mapping[str, tuple[Method, Proceed]],
        proxies: ProxyTrust,
        metrics: CallMetrics,
        reply: Callable[[bytes, Pairs, Pairs], Reply],
        error: Callable[[int, str, bytes, Pairs, Pairs], Exception],
    ) -> None:
        self._served = served
        self._proxies = proxies
        self._metrics = metrics
        self._reply = reply
        self._error = error

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Pairs,
        timeout: float | None,  # noqa: ASYNC109 - the port's signature; the chain enforces it
    ) -> Reply:
        """Call a unary RPC; `timeout` is in seconds."""
        call, proceed = self._call(method, request, metadata, timeout, streams=False)
        try:
            message = cast(bytes, await proceed(call))
        except Failure as failure:
            raise self._error_of(call, failure) from failure
        return self._reply(message, (), ())

    def server_stream(
        self, method: str, request: bytes, *, metadata: Pairs, timeout: float | None
    ) -> LocalStream:
        """Call a server streaming RPC; `timeout` is in seconds."""
        call, proceed = self._call(method, request, metadata, timeout, streams=True)
        return LocalStream(call, proceed, self._error_of)

    def _call(
        self,
        path: str,
        body: bytes,
        metadata: Pairs,
        timeout: float | None,
        *,
        streams: bool,
    ) -> tuple[Call, Proceed]:
        method, proceed = self._served.get(path, (None, None))
        if method is None or proceed is None or method.streams is not streams:
            record_unknown_call(self._metrics, "rest")
            code = grpc.StatusCode.UNIMPLEMENTED.value[0]
            raise self._error(code, f"unknown method: {path}", b"", (), ())
        call = build_call(method, body, metadata, "", True, self._proxies, "rest")
        call.timeout = timeout
        return call, proceed

    def _error_of(self, call: Call, failure: Failure) -> Exception:
        trailers = (
            ("x-request-id", call.request_id),
            (STATUS_DETAILS_KEY, failure.status),
        )
        return self._error(failure.code, failure.message, failure.status, (), trailers)


class LocalStream:
    """The messages of one call. `trailers` are set after the last message."""

    def __init__(
        self,
        call: Call,
        proceed: Proceed,
        error_of: Callable[[Call, Failure], Exception],
    ) -> None:
        self.headers: Pairs = ()
        self.trailers: Pairs = ()
        self._call = call
        self._proceed = proceed
        self._error_of = error_of

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        try:
            outcome = await self._proceed(self._call)
            async with aclosing(cast(Stream, outcome)) as messages:
                async for message in messages:
                    yield message
        except Failure as failure:
            raise self._error_of(self._call, failure) from failure
