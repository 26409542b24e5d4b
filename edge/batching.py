"""The port through a tunnel: the calls of one turn of the loop are sent together.

A stream of its own costs a call more than everything else that is done for it. What
the tunnel cannot take goes the usual way. The protocol is batching/v1/batching.proto.
"""

import asyncio
import logging
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from batching.v1.batching_pb2 import (
    Answer,
    Call,
    ExecuteBatchRequest,
    ExecuteBatchResponse,
    Pair,
)
from edge.errors import Code
from edge.port import UNREACHABLE, CallError, Metadata, RemotePort, Reply

_log = logging.getLogger("edge")
MOST_CALLS = 256  # at once; the server reads no further
_LARGEST = 64 * 1024  # bytes of a call; a larger one would hold up the others
_FULL = 256 * 1024  # bytes after which a message takes no more
_LONGEST = 49 * 86_400.0  # seconds
_GRACE = 0.03  # seconds for a server to keep a deadline itself
_TICK = 0.02  # seconds between looks at deadlines
_SECONDS_WITHOUT = 5.0  # until a tunnel is tried again where there was none


class BatchingPort(RemotePort):
    """The port over one channel, through a tunnel where the server has one."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self._open: Any = channel.stream_stream(
            "/batching.v1.BatchingService/ExecuteBatch"
        )
        self._batching: _BatchStream | None = None
        self._not_before = 0.0  # the loop's time

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109  # gRPC's word: the callee keeps it
    ) -> Reply:
        """Call over the channel; raises CallError as every port does."""
        call = Call(method=method, message=request, metadata=_pairs(metadata))
        if timeout is not None:
            call.timeout_ms = math.ceil(min(max(timeout, 0), _LONGEST) * 1000)
        batching = self._found() if call.ByteSize() <= _LARGEST else None
        answer = await batching.answer(call) if batching else None
        if answer is None or answer.unmade:
            return await super().unary(
                method, request, metadata=metadata, timeout=timeout
            )
        headers, trailers = _metadata(answer.headers), _metadata(answer.trailers)
        if answer.code:
            code, told, status = answer.code, answer.error, answer.status
            raise CallError(code, told, status, headers, trailers)
        return Reply(answer.message, headers, trailers)

    def _found(self) -> "_BatchStream | None":
        batching, loop = self._batching, asyncio.get_running_loop()
        if batching is not None and batching.sent_away:
            self._batching = batching = None
            self._not_before = loop.time() + _SECONDS_WITHOUT
        if batching is None or batching.closed:
            if loop.time() < self._not_before:
                return None
            batching = self._batching = _BatchStream(self._open(), loop)
        return batching if batching.has_room else None


class _BatchStream:
    """One stream, and the calls that it carries."""

    def __init__(self, stream: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._stream = stream
        self._loop = loop
        self._last = 0
        self._calls: dict[int, Call] = {}  # to be sent
        self._cancelled: list[int] = []  # to be sent
        self._waiting: dict[int, asyncio.Future[Answer | None]] = {}
        self._due: dict[int, float] = {}  # of them, in the loop's time
        self._parts: dict[int, list[bytes]] = {}  # of messages that go on
        self._changed = asyncio.Event()
        self._looks = False
        self.closed = False  # it takes no more calls
        self.sent_away = False  # the server has no tunnel, or none any more
        self._tasks = [loop.create_task(self._send()), loop.create_task(self._read())]

    @property
    def has_room(self) -> bool:
        """Tell whether one more call is not too many at once."""
        return len(self._waiting) < MOST_CALLS

    async def answer(self, call: Call) -> Answer | None:
        """Make a call; None: it was not made, as there is no tunnel.

        Raises CallError where nobody knows what became of it, or the deadline passed.
        """
        number = call.id = self._last = self._last + 1
        future = self._waiting[number] = self._loop.create_future()
        self._calls[number] = call
        if call.HasField("timeout_ms"):
            self._due[number] = self._loop.time() + call.timeout_ms / 1000 + _GRACE
            self._look_later()
        self._changed.set()
        try:
            answer: Answer | None = await future
        finally:
            self._due.pop(number, None)
            self._parts.pop(number, None)
            if self._waiting.pop(number, None):  # and there is no answer
                if self._calls.pop(number, None) is None:
                    self._cancelled.append(number)
                self._changed.set()
        return answer

    def _look_later(self) -> None:
        if not self._looks:
            self._looks = True
            self._loop.call_later(_TICK, self._look)

    def _look(self) -> None:
        """End the calls whose deadline a server has not kept; one timer for all."""
        now = self._loop.time()
        for number in [number for number, due in self._due.items() if due <= now]:
            late = CallError(Code.DEADLINE_EXCEEDED, "deadline exceeded")
            future = self._waiting.get(number)
            if future and not future.done():
                future.set_exception(late)
        self._looks = False
        if self._due:
            self._look_later()

    async def _send(self) -> None:
        # Whoever reads learns why a stream has ended.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while self._waiting or self._cancelled or not self.closed:
                if self._calls or self._cancelled:
                    await self._stream.write(self._request().SerializeToString())
                else:
                    self._changed.clear()
                    await self._changed.wait()
            await self._stream.done_writing()

    def _request(self) -> ExecuteBatchRequest:
        """Give what is to be sent, as much as fits."""
        cancelled, self._cancelled = self._cancelled, []
        request, size = ExecuteBatchRequest(cancelled=cancelled), 0
        for number in [*self._calls]:
            if size >= _FULL:
                break
            call = self._calls.pop(number)
            request.calls.append(call)
            size += call.ByteSize()
        return request

    async def _read(self) -> None:
        """Take answers until the stream ends; then nobody is left waiting."""
        told, heard = "the tunnel has ended", False
        end: CallError | None = CallError(Code.UNAVAILABLE, UNREACHABLE)
        try:
            while (read := await self._stream.read()) is not grpc.aio.EOF:
                heard = True
                self._take(ExecuteBatchResponse.FromString(read))
        except DecodeError:
            told = "that is no ExecuteBatchResponse"
        except grpc.aio.AioRpcError as error:
            told = error.details() or told
            if not heard and error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self.sent_away, end = True, None
            elif not heard and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                end = CallError(Code.RESOURCE_EXHAUSTED, "too many calls at once")
        finally:
            self._stream.cancel()
            if self._waiting and end:
                _log.warning("%d calls failed: %s", len(self._waiting), told)
            self._end(end)

    def _end(self, end: CallError | None) -> None:
        self.closed = True
        for number in [*self._waiting]:
            self._settle(number, end)
        self._calls.clear()
        self._cancelled.clear()
        self._changed.set()

    def _take(self, response: ExecuteBatchResponse) -> None:
        for answer in response.answers:
            if answer.id not in self._waiting:
                continue  # nobody waits for it
            if answer.more:
                self._parts.setdefault(answer.id, []).append(answer.message)
                continue
            if begun := self._parts.pop(answer.id, None):
                answer.message = b"".join((*begun, answer.message))
            self._settle(answer.id, answer)
        if response.draining:
            self.closed = self.sent_away = True
        self._changed.set()

    def _settle(self, number: int, end: Answer | CallError | None) -> None:
        future = self._waiting.pop(number)
        if future.done():  # cancelled, and its task not awake yet
            return
        if isinstance(end, CallError):
            future.set_exception(CallError(end.code, end.message))
        else:
            future.set_result(end)


def _pairs(metadata: Metadata) -> list[Pair]:
    return [
        Pair(name=name, value=value if isinstance(value, bytes) else value.encode())
        for name, value in metadata
    ]


def _metadata(pairs: Iterable[Pair]) -> Metadata:
    return tuple((pair.name, _value(pair)) for pair in pairs)


def _value(pair: Pair) -> str | bytes:
    binary = pair.name.endswith("-bin")
    return pair.value if binary else pair.value.decode(errors="replace")
