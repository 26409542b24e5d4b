"""The port that batches unary calls: all calls of one turn of the loop in one message.

A gRPC stream for each call costs more than everything else the edge does for it. Calls
that the batching stream cannot take use the plain port. Protocol:
batching/v1/batching.proto.
"""

import asyncio
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from batching.v1.batching_pb2 import (
    Call,
    CallResult,
    ExecuteBatchRequest,
    ExecuteBatchResponse,
    MetadataEntry,
)
from edge.errors import DEADLINE_MESSAGE, Code
from edge.port import UNREACHABLE, CallError, Metadata, RemotePort, Reply
from edge.remote.outages import OutageLog

MAX_CALLS = 256  # of one stream at a time; the server reads no further
_MAX_CALL_SIZE = 64 * 1024  # bytes; a larger call would delay the others
_FLUSH_SIZE = 256 * 1024  # bytes after which a message takes no more calls
_MAX_TIMEOUT = 49 * 86_400.0  # seconds; 2**32 milliseconds are more
_GRACE = 0.03  # seconds by which a server may report a passed deadline itself
_TICK = 0.02  # seconds between two checks of the deadlines
# Seconds after which calls use a new stream: a server that limits the age of its
# connections ends streams that stay on an old one.
MAX_STREAM_AGE = 60.0
_RETRY_INTERVAL = 5.0  # seconds until batching is tried again after UNIMPLEMENTED


class BatchingPort(RemotePort):
    """The port over one channel, with batching if the server offers it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self._open: Any = channel.stream_stream(
            "/batching.v1.BatchingService/ExecuteBatch"
        )
        self._stream_of_calls: ClientBatchStream | None = None
        self._not_before = 0.0  # the loop's time of the next attempt

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109  # gRPC's term: the callee enforces it
    ) -> Reply:
        """Call a unary method. Raises CallError."""
        call = Call(method=method, message=request, metadata=_entries(metadata))
        deadline = None
        if timeout is not None:
            timeout = min(timeout, _MAX_TIMEOUT)
            deadline = asyncio.get_running_loop().time() + timeout
        result = await self._batched(call, deadline)
        if result is None or result.not_executed:
            if deadline is not None:
                timeout = deadline - asyncio.get_running_loop().time()
            return await super().unary(
                method, request, metadata=metadata, timeout=timeout
            )
        headers, trailers = _metadata(result.headers), _metadata(result.trailers)
        if result.code:
            raise CallError(
                result.code, result.error_message, result.status, headers, trailers
            )
        return Reply(result.message, headers, trailers)

    async def _batched(self, call: Call, deadline: float | None) -> CallResult | None:
        """Return the result of a call over the stream; None if it was not executed."""
        if call.ByteSize() > _MAX_CALL_SIZE:
            return None
        stream = self._current_stream()
        return await stream.execute(call, deadline) if stream else None

    def _current_stream(self) -> "ClientBatchStream | None":
        """Return a stream that takes one more call; open one if there is none."""
        stream, loop = self._stream_of_calls, asyncio.get_running_loop()
        if stream is not None and stream.refused:
            self._stream_of_calls = stream = None
            self._not_before = loop.time() + _RETRY_INTERVAL
        if stream is not None and loop.time() - stream.opened_at > MAX_STREAM_AGE:
            stream.retire()
            if not stream.ended:  # a connection has one stream at a time
                return None
        if stream is None or stream.closed:
            if loop.time() < self._not_before:
                return None
            stream = ClientBatchStream(self._open(), loop, self._outages)
            self._stream_of_calls = stream
        return stream if stream.has_room else None


class ClientBatchStream:
    """One stream and its calls."""

    def __init__(
        self, stream: Any, loop: asyncio.AbstractEventLoop, outages: OutageLog
    ) -> None:
        self._stream = stream
        self._outages = outages
        self._loop = loop
        self.opened_at = loop.time()
        self._last_id = 0
        self._calls: dict[int, Call] = {}  # to be sent
        self._cancelled: list[int] = []  # to be sent
        self._waiting: dict[int, asyncio.Future[CallResult | None]] = {}
        self._deadlines: dict[int, float] = {}  # of waiting calls, in the loop's time
        self._parts: dict[int, list[bytes]] = {}  # of partial results
        self._changed = asyncio.Event()
        self._timer_runs = False
        self.closed = False  # takes no more calls
        self.refused = False  # the server has no batching, or is draining
        self._tasks = [loop.create_task(self._send()), loop.create_task(self._read())]

    @property
    def has_room(self) -> bool:
        """Whether the stream takes one more call."""
        return len(self._waiting) < MAX_CALLS

    @property
    def ended(self) -> bool:
        """Whether the server has ended the stream."""
        return all(task.done() for task in self._tasks)

    def retire(self) -> None:
        """Take no more calls; end after the waiting ones."""
        self.closed = True
        self._changed.set()

    async def execute(self, call: Call, deadline: float | None) -> CallResult | None:
        """Return the result of a call; None if the server refused the stream.

        `deadline` is in the loop's time. Raises CallError if the deadline has passed or
        the outcome is unknown, and CancelledError if the channel is closed.
        """
        call_id = call.id = self._last_id = self._last_id + 1
        future = self._waiting[call_id] = self._loop.create_future()
        self._calls[call_id] = call
        if deadline is not None:
            self._deadlines[call_id] = deadline
            self._start_timer()
        self._changed.set()
        try:
            result: CallResult | None = await future
        finally:
            self._deadlines.pop(call_id, None)
            self._parts.pop(call_id, None)
            if self._waiting.pop(call_id, None):  # without a result
                if self._calls.pop(call_id, None) is None:
                    self._cancelled.append(call_id)
                self._changed.set()
        return result

    def _start_timer(self) -> None:
        if not self._timer_runs:
            self._timer_runs = True
            self._loop.call_later(_TICK, self._check_deadlines)

    def _check_deadlines(self) -> None:
        """End calls whose deadline the server missed. One timer serves all calls."""
        latest = self._loop.time() - _GRACE
        expired = [number for number, end in self._deadlines.items() if end <= latest]
        for call_id in expired:
            future = self._waiting.get(call_id)
            if future and not future.done():
                error = CallError(Code.DEADLINE_EXCEEDED, DEADLINE_MESSAGE)
                future.set_exception(error)
        self._timer_runs = False
        if self._deadlines:
            self._start_timer()

    async def _send(self) -> None:
        # _read() handles the end of the stream.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while self._waiting or self._cancelled or not self.closed:
                if self._calls or self._cancelled:
                    await self._stream.write(self._next_request().SerializeToString())
                else:
                    self._changed.clear()
                    await self._changed.wait()
            await self._stream.done_writing()

    def _next_request(self) -> ExecuteBatchRequest:
        """Return the next calls to be sent, up to the flush size."""
        cancelled, self._cancelled = self._cancelled, []
        request, size = ExecuteBatchRequest(cancelled=cancelled), 0
        now = self._loop.time()
        for call_id in [*self._calls]:
            if size >= _FLUSH_SIZE:
                break
            call = self._calls.pop(call_id)
            deadline = self._deadlines.get(call_id)
            if deadline is not None:  # a call may have waited for earlier ones
                call.timeout_ms = max(math.ceil((deadline - now) * 1000), 0)
            request.calls.append(call)
            size += call.ByteSize()
        return request

    async def _read(self) -> None:
        """Receive results until the stream ends, then end all waiting calls."""
        reason, received = "the stream has ended", False
        end: CallError | None = CallError(Code.UNAVAILABLE, UNREACHABLE)
        try:
            while (data := await self._stream.read()) is not grpc.aio.EOF:
                received = True
                self._outages.end()
                self._receive(ExecuteBatchResponse.FromString(data))
        except DecodeError:
            reason = "received bytes that are not an ExecuteBatchResponse"
        except grpc.aio.AioRpcError as error:
            reason = error.details() or reason
            if not received and error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self.refused, end = True, None
            elif not received and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                end = CallError(
                    Code.RESOURCE_EXHAUSTED, "too many concurrent calls: retry later"
                )
        except asyncio.CancelledError:  # the channel was closed
            self._cancel_all()
            raise
        finally:
            self._stream.cancel()
            if self._waiting and end:
                self._outages.begin(reason)
            self._end(end)

    def _cancel_all(self) -> None:
        """Cancel the waiting calls, as a closed channel cancels unary calls."""
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()

    def _end(self, end: CallError | None) -> None:
        self.closed = True
        for call_id in [*self._waiting]:
            self._settle(call_id, end)
        self._calls.clear()
        self._cancelled.clear()
        self._changed.set()

    def _receive(self, response: ExecuteBatchResponse) -> None:
        for result in response.results:
            if result.id not in self._waiting:
                continue  # cancelled
            if result.partial:
                self._parts.setdefault(result.id, []).append(result.message)
                continue
            if parts := self._parts.pop(result.id, None):
                result.message = b"".join((*parts, result.message))
            self._settle(result.id, result)
        if response.draining:
            self.closed = self.refused = True
        self._changed.set()

    def _settle(self, call_id: int, end: CallResult | CallError | None) -> None:
        future = self._waiting.pop(call_id)
        if future.done():  # cancelled, and its task has not run since
            return
        if isinstance(end, CallError):
            future.set_exception(CallError(end.code, end.message))
        else:
            future.set_result(end)


def _entries(metadata: Metadata) -> list[MetadataEntry]:
    return [
        MetadataEntry(
            key=key, value=value if isinstance(value, bytes) else value.encode()
        )
        for key, value in metadata
    ]


def _metadata(entries: Iterable[MetadataEntry]) -> Metadata:
    return tuple((entry.key, _value(entry)) for entry in entries)


def _value(entry: MetadataEntry) -> str | bytes:
    binary = entry.key.endswith("-bin")
    return entry.value if binary else entry.value.decode(errors="replace")
