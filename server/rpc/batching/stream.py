"""The server side of batching: many unary calls over one stream (batching.proto).

Every caller may open such a stream. A call in it is subject to the same rules as a call
of its own.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from batching.v1 import batching_pb2 as pb
from server.domain.errors import DeadlineExceeded
from server.rpc.batching.call import CallExecutor, error_result
from server.rpc.connections import ConnectionCounter
from server.rpc.grpc_messages import ClientNotReading, MessageChannel
from server.rpc.grpc_server import KIB, MAX_CALLS_PER_CONNECTION

log = structlog.get_logger()
_FLUSH_SIZE = 256 * KIB  # bytes after which a response takes no more results
_SERVICE = pb.DESCRIPTOR.services_by_name["BatchingService"].full_name
_UNAVAILABLE_HERE = "batching is not available on this connection: use unary calls"
_TOO_MANY_CALLS = "too many concurrent calls: retry"


class BatchingServicer:
    """The batching service: one stream for each connection."""

    def __init__(
        self,
        execute: CallExecutor,
        max_calls: int,
        messages: MessageChannel,
        connections: ConnectionCounter | None = None,
    ) -> None:
        """Execute calls, at most `max_calls` at a time over all streams."""
        self._execute = execute
        self.messages = messages
        self._connections = connections or ConnectionCounter()
        self._max_calls = max_calls
        self._streams: dict[
            str, ServerBatchStream
        ] = {}  # by gRPC's name of the connection
        self._draining = False
        self.running = 0  # calls that are being executed

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the gRPC handler of the service."""
        serve: Any = self._serve
        handler: Any = grpc.stream_stream_rpc_method_handler(serve)
        return grpc.method_handlers_generic_handler(_SERVICE, {"ExecuteBatch": handler})

    def drain(self) -> None:
        """Finish the calls that were received, and tell clients to send no more."""
        self._draining = True
        for stream in self._streams.values():
            stream.drain()

    async def _serve(self, _: object, context: Any) -> None:
        peer = context.peer()
        self._connections.add(peer)
        if self._draining or peer in self._streams:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, _UNAVAILABLE_HERE)
        try:
            await self._serve_stream(peer, context)
        except DecodeError:
            code = grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(code, "not a valid ExecuteBatchRequest message")
        except ClientNotReading:
            await self.messages.abort_unread(context)

    async def _serve_stream(self, peer: str, context: Any) -> None:
        self._streams[peer] = stream = ServerBatchStream(self, context)
        try:
            await stream.serve()
        finally:
            del self._streams[peer]

    def start(
        self,
        call: pb.Call,
        timeout: float | None,
        peer: str,
    ) -> asyncio.Task[pb.CallResult] | None:
        """Start a call; None if too many are running."""
        if self.running >= self._max_calls:
            return None
        self.running += 1
        task = asyncio.ensure_future(self._execute(call, timeout, peer))
        task.add_done_callback(self._ended)
        return task

    def _ended(self, _: asyncio.Task[pb.CallResult]) -> None:
        self.running -= 1


class ServerBatchStream:
    """One stream and its calls.

    Unsent results are bounded by not reading: a client that does not read its results
    has to wait. Running calls are bounded by not executing: cancelled calls may take
    long to end, and no other call waits for them.
    """

    def __init__(self, servicer: BatchingServicer, context: Any) -> None:
        self._servicer = servicer
        self._context = context
        self._peer: str = context.peer()
        self._loop = asyncio.get_running_loop()
        # From a call's arrival until its result is sent; None: it is not executed.
        self._calls: dict[int, asyncio.Task[pb.CallResult] | None] = {}
        self._cancelled: set[asyncio.Task[pb.CallResult]] = set()  # and still running
        self._results: list[pb.CallResult] = []  # to be sent
        self._draining = self._complete = False
        self._changed = asyncio.Event()
        self._call_removed = asyncio.Event()

    def drain(self) -> None:
        """Ask the client to send no more calls."""
        self._draining = True
        self._changed.set()

    async def serve(self) -> None:
        """Serve until the client has sent its last call.

        Raises DecodeError, and ClientNotReading if results cannot be sent.
        """
        # Now: gRPC sends no status after a first message that was cancelled with it.
        await self._context.send_initial_metadata(())
        tasks = [
            asyncio.ensure_future(self._receive()),
            asyncio.ensure_future(self._send()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for pending in (*tasks, *filter(None, self._calls.values())):
                pending.cancel()

    async def _receive(self) -> None:
        while request := await self._read():
            await self._accept(request, self._loop.time())
        await self._wait_until_below(1)
        self._complete = True
        self._changed.set()

    async def _read(self) -> pb.ExecuteBatchRequest | None:
        try:
            received = await self._context.read()
        except grpc.aio.BaseError:
            raise DecodeError from None  # larger than gRPC's limit for messages
        if received is grpc.aio.EOF:
            return None
        request = pb.ExecuteBatchRequest.FromString(received)
        if len(request.calls) > MAX_CALLS_PER_CONNECTION:
            raise DecodeError
        return request

    async def _accept(self, request: pb.ExecuteBatchRequest, arrival: float) -> None:
        cancelled = set(request.cancelled)
        for call_id in cancelled:  # before the calls, to make room for them
            if task := self._calls.get(call_id):
                self._cancel(call_id, task)
        for call in request.calls:
            if call.id not in cancelled:
                await self._wait_until_below(MAX_CALLS_PER_CONNECTION)
                self._start(call, arrival)

    def _cancel(self, call_id: int, task: asyncio.Task[pb.CallResult]) -> None:
        if not task.done():  # otherwise its result is about to be sent
            task.cancel()
            self._cancelled.add(task)
            self._remove(call_id)

    async def _wait_until_below(self, count: int) -> None:
        """Wait until fewer calls have an unsent result: the client must read first."""
        while len(self._calls) >= count:
            self._call_removed.clear()
            await self._call_removed.wait()

    def _start(self, call: pb.Call, arrival: float) -> None:
        if call.id in self._calls:
            raise DecodeError
        task, timeout = None, None
        if call.HasField("timeout_ms"):
            timeout = call.timeout_ms / 1000 - (self._loop.time() - arrival)
        if timeout is not None and timeout <= 0:
            code, message = grpc.StatusCode.DEADLINE_EXCEEDED, str(DeadlineExceeded())
        else:
            code, message = grpc.StatusCode.RESOURCE_EXHAUSTED, _TOO_MANY_CALLS
            if len(self._calls) + len(self._cancelled) < MAX_CALLS_PER_CONNECTION:
                task = self._servicer.start(call, timeout, self._peer)
        self._calls[call.id] = task
        if task:
            task.add_done_callback(partial(self._finish, call.id))
        else:
            result = error_result(call.id, code, message)
            result.not_executed = True
            self._add(result)

    def _finish(self, call_id: int, task: asyncio.Task[pb.CallResult]) -> None:
        if task in self._cancelled:  # whatever it ended with
            self._cancelled.discard(task)
            if not task.cancelled() and (error := task.exception()):
                log.error("unexpected", exc_info=error)
        elif task.cancelled():
            self._remove(call_id)
        elif error := task.exception():
            log.error("unexpected", exc_info=error)
            code = grpc.StatusCode.INTERNAL
            self._add(error_result(call_id, code, "internal error"))
        else:
            self._add(task.result())

    def _add(self, result: pb.CallResult) -> None:
        """Queue a result, in parts: channels limit the size of a message."""
        message, end = result.message, 0
        for end in range(_FLUSH_SIZE, len(message), _FLUSH_SIZE):
            part = message[end - _FLUSH_SIZE : end]
            self._results.append(
                pb.CallResult(id=result.id, message=part, partial=True)
            )
        if end:
            result.message = message[end:]
        self._results.append(result)
        self._changed.set()

    def _remove(self, call_id: int) -> None:
        del self._calls[call_id]
        self._call_removed.set()

    async def _send(self) -> None:
        # serve() handles the end of the stream.
        with suppress(grpc.aio.BaseError, asyncio.InvalidStateError):
            while not self._complete:
                if not (self._results or self._draining):
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                response = self._next_response()
                message = response.SerializeToString()
                await self._servicer.messages.send(self._context, message)
                for result in response.results:
                    if not result.partial:
                        self._remove(result.id)

    def _next_response(self) -> pb.ExecuteBatchResponse:
        """Return the next queued results, up to the flush size."""
        size = count = 0
        while count < len(self._results) and size < _FLUSH_SIZE:
            size += self._results[count].ByteSize()
            count += 1
        results, self._results = self._results[:count], self._results[count:]
        draining, self._draining = self._draining, False
        return pb.ExecuteBatchResponse(results=results, draining=draining)
