"""The server's end of a tunnel: many unary calls over one stream (batching.proto).

Whoever can call may open one: a call in it is bound by all that binds it without.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, cast

import grpc
import structlog
from google.protobuf.message import DecodeError

from batching.v1 import batching_pb2 as pb
from server.rpc.addresses import TrustedProxies, peer_address
from server.rpc.call import Failure, Method, Proceed
from server.rpc.listener import KIB, MAX_METADATA, STATUS, incoming

log = structlog.get_logger()
MOST_CALLS = 256  # of one tunnel, from their coming until their answer is sent
_FULL = 256 * KIB  # bytes after which a message takes no more
_ENTRY = 32  # bytes that an entry counts beside its name and value (RFC 9113 6.5.2)
_SERVICE = pb.DESCRIPTOR.services_by_name["BatchingService"].full_name
_NO_BATCHING = "no tunnel here: call without"
# gRPC over HTTP/2: Header-Name, ASCII-Value
_named = lru_cache(maxsize=1024)(re.compile(r"[0-9a-z_.-]+").fullmatch)
_TEXT = re.compile(rb"[\x20-\x7e]*")
Answering = Callable[[pb.Call, str], Awaitable[pb.Answer]]


def answering(
    served: Mapping[str, tuple[Method, Proceed]], proxies: TrustedProxies
) -> Answering:
    """Give what makes a call of a peer, as gRPC names peers, and its answer."""

    async def answer(told: pb.Call, peer: str) -> pb.Answer:
        method, proceed = served.get(told.method, (None, None))
        if method is None or proceed is None or method.streams:
            text = f"no such method: {told.method}"
            return _refusal(told.id, grpc.StatusCode.UNIMPLEMENTED, text)
        try:
            metadata = [*_metadata(told.metadata)]
        except ValueError as error:
            return _refusal(told.id, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        address = peer_address(peer)
        trusted = proxies.covers(address)
        call = incoming(method, told.message, metadata, address, trusted, proxies)
        call.timeout = told.timeout_ms / 1000 if told.HasField("timeout_ms") else None
        try:
            message = cast(bytes, await proceed(call))
        except Failure as failure:
            return pb.Answer(
                id=told.id,
                code=failure.code,
                error=failure.message,
                status=failure.status,
                trailers=[
                    pb.Pair(name="x-request-id", value=call.request_id.encode()),
                    pb.Pair(name=STATUS, value=failure.status),
                ],
            )
        return pb.Answer(id=told.id, message=message)

    return answer


def _metadata(pairs: Sequence[pb.Pair]) -> Iterator[tuple[str, str | bytes]]:
    """Give what gRPC would have let through; raises ValueError."""
    if len(pairs) * _ENTRY > MAX_METADATA:
        raise ValueError("the metadata has too many entries")
    size = 0
    for pair in pairs:
        size += _ENTRY + len(pair.name) + len(pair.value)
        if size > MAX_METADATA or not _named(pair.name):
            raise ValueError("the metadata is too large, or a name is none")
        if pair.name.endswith("-bin"):
            yield pair.name, pair.value
        elif _TEXT.fullmatch(pair.value):
            yield pair.name, pair.value.decode()
        else:
            raise ValueError(f"the metadata {pair.name} is not printable ASCII")


def _refusal(number: int, code: grpc.StatusCode, told: str) -> pb.Answer:
    return pb.Answer(id=number, code=code.value[0], error=told)


class BatchingServicer:
    """The service: one tunnel for each connection."""

    def __init__(self, answer: Answering, most_calls: int) -> None:
        """Have calls answered; beyond `most_calls` at once they are not made."""
        self._answer = answer
        self._most = most_calls
        self._ends: dict[str, _End] = {}  # by the connection, as gRPC names it
        self._draining = False
        self.running = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """Give what serves it."""
        carry: Any = self._carry
        handler: Any = grpc.stream_stream_rpc_method_handler(carry)
        return grpc.method_handlers_generic_handler(_SERVICE, {"ExecuteBatch": handler})

    def drain(self) -> None:
        """Answer what has been sent, and have no more."""
        self._draining = True
        for end in self._ends.values():
            end.drain()

    async def _carry(self, _: object, context: Any) -> None:
        peer = context.peer()
        if self._draining or peer in self._ends:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_BATCHING)
        self._ends[peer] = end = _End(self, context)
        try:
            await end.carry()
        except DecodeError:
            code = grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(code, "that is no ExecuteBatchRequest")
        finally:
            del self._ends[peer]

    def make(self, call: pb.Call, peer: str) -> asyncio.Task[pb.Answer] | None:
        """Begin a call; None: there are too many."""
        if self.running >= self._most:
            return None
        self.running += 1
        task = asyncio.ensure_future(self._answer(call, peer))
        task.add_done_callback(self._ended)
        return task

    def _ended(self, _: asyncio.Task[pb.Answer]) -> None:
        self.running -= 1


class _End:
    """One stream, and the calls that it carries."""

    def __init__(self, batching: BatchingServicer, context: Any) -> None:
        self._batching = batching
        self._context = context
        self._peer: str = context.peer()
        # from a call's coming until its answer is sent; None: it was not made
        self._calls: dict[int, asyncio.Task[pb.Answer] | None] = {}
        self._answers: list[pb.Answer] = []  # to be sent
        self._draining = self._ended = False
        self._changed = asyncio.Event()
        self._fewer = asyncio.Event()

    def drain(self) -> None:
        """Have the other end send no more."""
        self._draining = True
        self._changed.set()

    async def carry(self) -> None:
        """Answer calls until the other end has sent its last; raises DecodeError."""
        sending = asyncio.ensure_future(self._send())
        try:
            while request := await self._read():
                await self._take(request)
            await self._until_below(1)
            self._ended = True
            self._changed.set()
            await sending
        finally:
            sending.cancel()
            for task in filter(None, self._calls.values()):
                task.cancel()

    async def _read(self) -> pb.ExecuteBatchRequest | None:
        try:
            read = await self._context.read()
        except grpc.aio.BaseError:
            raise DecodeError from None  # larger than messages may be
        if read is grpc.aio.EOF:
            return None
        request = pb.ExecuteBatchRequest.FromString(read)
        if len(request.calls) > MOST_CALLS:
            raise DecodeError
        return request

    async def _take(self, request: pb.ExecuteBatchRequest) -> None:
        cancelled = set(request.cancelled)
        for number in cancelled:  # first: they make room
            if task := self._calls.get(number):
                task.cancel()
        for call in request.calls:
            if call.id not in cancelled:
                await self._until_below(MOST_CALLS)
                self._begin(call)

    async def _until_below(self, calls: int) -> None:
        """Wait until there are fewer calls: who is slow to read has to wait."""
        while len(self._calls) >= calls:
            self._fewer.clear()
            await self._fewer.wait()

    def _begin(self, call: pb.Call) -> None:
        if call.id in self._calls:
            raise DecodeError
        self._calls[call.id] = task = self._batching.make(call, self._peer)
        if task is None:
            code, told = grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls at once"
            answer = _refusal(call.id, code, told)
            answer.unmade = True
            self._add(answer)
        else:
            task.add_done_callback(partial(self._done, call.id))

    def _done(self, number: int, task: asyncio.Task[pb.Answer]) -> None:
        if task.cancelled():
            self._forget(number)
        elif fault := task.exception():
            log.error("unexpected", exc_info=fault)
            code = grpc.StatusCode.INTERNAL
            self._add(_refusal(number, code, "internal error"))
        else:
            self._add(task.result())

    def _add(self, answer: pb.Answer) -> None:
        """Have an answer sent, in parts: not every channel takes larger messages."""
        message, last = answer.message, 0
        for last in range(_FULL, len(message), _FULL):
            part = message[last - _FULL : last]
            self._answers.append(pb.Answer(id=answer.id, message=part, more=True))
        if last:
            answer.message = message[last:]
        self._answers.append(answer)
        self._changed.set()

    def _forget(self, number: int) -> None:
        del self._calls[number]
        self._fewer.set()

    async def _send(self) -> None:
        # Whoever reads learns that a stream has ended.
        with suppress(grpc.aio.BaseError, asyncio.InvalidStateError):
            while not self._ended:
                if not (self._answers or self._draining):
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                response = self._response()
                await self._context.write(response.SerializeToString())
                for answer in response.answers:
                    if not answer.more:
                        self._forget(answer.id)

    def _response(self) -> pb.ExecuteBatchResponse:
        """Give what is to be sent, as much as fits."""
        size = count = 0
        while count < len(self._answers) and size < _FULL:
            size += self._answers[count].ByteSize()
            count += 1
        taken, self._answers = self._answers[:count], self._answers[count:]
        draining, self._draining = self._draining, False
        return pb.ExecuteBatchResponse(answers=taken, draining=draining)
