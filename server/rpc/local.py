"""The same chain without a wire, for an edge in the same process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar, cast

import grpc

from server.rpc.addresses import TrustedProxies
from server.rpc.call import Call, Failure, Method, Proceed, Stream
from server.rpc.listener import STATUS, incoming

Pairs = Sequence[tuple[str, str | bytes]]
Reply = TypeVar("Reply")


class LocalPort(Generic[Reply]):
    """Calls RPCs in this process. Its caller is trusted to name the client.

    What a call gives and raises is made by `reply(message, headers, trailers)` and
    `error(code, message, status, headers, trailers)`, so that nothing here knows
    who calls.
    """

    def __init__(
        self,
        served: Mapping[str, tuple[Method, Proceed]],
        proxies: TrustedProxies,
        reply: Callable[[bytes, Pairs, Pairs], Reply],
        error: Callable[[int, str, bytes, Pairs, Pairs], Exception],
    ) -> None:
        self._served = served
        self._proxies = proxies
        self._reply = reply
        self._error = error

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Pairs,
        timeout: float | None,  # noqa: ASYNC109 - the port's; the chain holds it
    ) -> Reply:
        """Call an RPC that has one answer; `timeout` is in seconds."""
        call, proceed = self._call(method, request, metadata, timeout, streams=False)
        try:
            message = cast(bytes, await proceed(call))
        except Failure as failure:
            raise self._failed(call, failure) from failure
        return self._reply(message, (), ())

    def server_stream(
        self, method: str, request: bytes, *, metadata: Pairs, timeout: float | None
    ) -> LocalStream:
        """Call an RPC that has any number of answers."""
        call, proceed = self._call(method, request, metadata, timeout, streams=True)
        return LocalStream(call, proceed, self._failed)

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
            code = grpc.StatusCode.UNIMPLEMENTED.value[0]
            raise self._error(code, f"no such method: {path}", b"", (), ())
        call = incoming(method, body, metadata, "", True, self._proxies)
        call.timeout = timeout
        return call, proceed

    def _failed(self, call: Call, failure: Failure) -> Exception:
        trailers = (("x-request-id", call.request_id), (STATUS, failure.status))
        return self._error(failure.code, failure.message, failure.status, (), trailers)


class LocalStream:
    """The answers of one call; `trailers` are known after the last."""

    def __init__(
        self,
        call: Call,
        proceed: Proceed,
        failed: Callable[[Call, Failure], Exception],
    ) -> None:
        self.headers: Pairs = ()
        self.trailers: Pairs = ()
        self._call = call
        self._proceed = proceed
        self._failed = failed

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        try:
            outcome = await self._proceed(self._call)
            async with aclosing(cast(Stream, outcome)) as messages:
                async for message in messages:
                    yield message
        except Failure as failure:
            raise self._failed(self._call, failure) from failure
