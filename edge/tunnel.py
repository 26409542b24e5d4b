"""Both ends of a tunnel: the unary calls of one turn of the loop, sent together.

A stream of its own costs a call more than everything else that is done for it.
`TunnelPort` calls over one stream for all, `Tunnel` answers there, by any port. What
the tunnel cannot take goes the usual way.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from edge.errors import Code
from edge.port import (
    UNREACHABLE,
    CallError,
    CallPort,
    Metadata,
    RemotePort,
    Reply,
)
from tunnel.v1.tunnel_pb2 import Answer, Call, CarryRequest, CarryResponse, Pair

_log = logging.getLogger("edge")
_SERVICE = "tunnel.v1.TunnelService"
MOST_CALLS = 256  # at once over one tunnel, as HTTP/2 has streams
_LARGEST = 64 * 1024  # bytes of a call; a larger one would hold up the others
_FULL = 256 * 1024  # bytes after which a message takes no more
_LONGEST = 49 * 86_400.0  # seconds
_SECONDS_WITHOUT = 5.0  # until a tunnel is tried again where there was none


class _Outbox:
    """What is to be sent, as much at a time as fits."""

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._wake = asyncio.Event()
        self.closed = False

    def add(self, message: Call | Answer | int) -> None:
        """Have it sent: a call, an answer, or the id of a call that is cancelled."""
        self._held.append(message)
        self._wake.set()

    def close(self) -> None:
        """Take nothing more, and end once all is sent."""
        self.closed = True
        self._wake.set()

    async def next(self) -> list[Any]:
        """Wait for something to send; nothing: that was all."""
        while not self._held and not self.closed:
            self._wake.clear()
            await self._wake.wait()
        size = count = 0
        while count < min(len(self._held), MOST_CALLS) and size < _FULL:
            held = self._held[count]
            size += 0 if isinstance(held, int) else held.ByteSize()
            count += 1
        taken, self._held = self._held[:count], self._held[count:]
        return taken


class TunnelPort(RemotePort):
    """The port over one channel, through a tunnel where the server has one."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self._open: Any = channel.stream_stream(f"/{_SERVICE}/Carry")
        self._end: _CallersEnd | None = None
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
        end = self._tunnel() if call.ByteSize() <= _LARGEST else None
        answer = await end.answer(call) if end else None
        if answer is None:
            return await super().unary(
                method, request, metadata=metadata, timeout=timeout
            )
        headers, trailers = _metadata(answer.headers), _metadata(answer.trailers)
        if answer.code:
            code, told, status = answer.code, answer.error, answer.status
            raise CallError(code, told, status, headers, trailers)
        return Reply(answer.message, headers, trailers)

    def _tunnel(self) -> "_CallersEnd | None":
        end, loop = self._end, asyncio.get_running_loop()
        if end is not None and end.sent_away:
            self._end = end = None
            self._not_before = loop.time() + _SECONDS_WITHOUT
        if end is None or end.closed:
            if loop.time() < self._not_before:
                return None
            end = self._end = _CallersEnd(self._open())
        return end if end.has_room else None


class _CallersEnd:
    """One tunnel, where the calls come from."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._waiting: dict[int, asyncio.Future[Answer | None]] = {}
        self._parts: dict[int, list[bytes]] = {}  # of messages that go on
        self._last = 0
        self._outbox = _Outbox()
        self._sending = asyncio.ensure_future(self._send())
        self._receiving = asyncio.ensure_future(self._receive())
        self.sent_away = False  # the server has no tunnel, or none any more

    @property
    def closed(self) -> bool:
        """Tell whether calls must go another way."""
        return self._outbox.closed

    @property
    def has_room(self) -> bool:
        """Tell whether one more call is not too many at once."""
        return len(self._waiting) < MOST_CALLS

    async def answer(self, call: Call) -> Answer | None:
        """Make a call; None: it was not made, as there is no tunnel.

        Raises CallError where nobody knows what became of it.
        """
        call.id = self._last = self._last + 1
        future = asyncio.get_running_loop().create_future()
        self._waiting[call.id] = future
        self._outbox.add(call)
        try:
            answer: Answer | None = await future
        except asyncio.CancelledError:
            if self._waiting.pop(call.id, None):
                self._outbox.add(call.id)
            raise
        return answer

    async def _send(self) -> None:
        try:
            while held := await self._outbox.next():
                cancelled = [one for one in held if isinstance(one, int)]
                calls = [one for one in held if not isinstance(one, int)]
                request = CarryRequest(calls=calls, cancelled=cancelled)
                await self._stream.write(request.SerializeToString())
            await self._stream.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # it has ended: whoever reads learns why
        except BaseException:
            self._stream.cancel()
            raise

    async def _receive(self) -> None:
        told, heard, unmade = "the tunnel has ended", False, False
        try:
            while (read := await self._stream.read()) is not grpc.aio.EOF:
                heard = True
                response = CarryResponse.FromString(read)
                for answer in response.answers:
                    self._take(answer)
                if response.draining:
                    self.sent_away = True
                    self._outbox.close()
        except grpc.aio.AioRpcError as error:
            refused = error.code() is grpc.StatusCode.UNIMPLEMENTED
            unmade = refused and not heard
            self.sent_away |= unmade
            told = error.details() or told
        except DecodeError:
            told = "that is no CarryResponse"
        finally:
            self._outbox.close()
            self._sending.cancel()
            self._stream.cancel()
            self._give_up(told, unmade=unmade)

    def _take(self, answer: Answer) -> None:
        if answer.more:
            self._parts.setdefault(answer.id, []).append(answer.message)
            return
        if begun := self._parts.pop(answer.id, None):
            answer.message = b"".join((*begun, answer.message))
        self._settle(answer.id, answer)

    def _give_up(self, told: str, *, unmade: bool) -> None:
        if self._waiting and not unmade:
            _log.warning("%d calls failed: %s", len(self._waiting), told)
        for number in [*self._waiting]:
            lost = CallError(Code.UNAVAILABLE, UNREACHABLE)
            self._settle(number, None if unmade else lost)

    def _settle(self, number: int, end: Answer | CallError | None) -> None:
        future = self._waiting.pop(number, None)
        if future is None or future.done():  # nobody waits for it
            return
        if isinstance(end, CallError):
            future.set_exception(end)
        else:
            future.set_result(end)


class Tunnel:
    """The service at the other end."""

    def __init__(self, port: Callable[[str], CallPort], most_calls: int) -> None:
        """Have calls answered by the port of their peer, as gRPC names peers.

        Beyond `most_calls` at once, over all tunnels, they are refused.
        """
        self._port = port
        self._most = most_calls
        self._ends: set[_ServersEnd] = set()
        self._draining = False

    def handler(self) -> grpc.GenericRpcHandler:
        """Give what serves it."""
        carry: Any = self._carry
        handler: Any = grpc.stream_stream_rpc_method_handler(carry)
        return grpc.method_handlers_generic_handler(_SERVICE, {"Carry": handler})

    def drain(self) -> None:
        """Answer what has been sent, and have no more."""
        self._draining = True
        for end in self._ends:
            end.drain()

    async def _carry(self, _: object, context: Any) -> None:
        if self._draining:
            code = grpc.StatusCode.UNIMPLEMENTED
            await context.abort(code, "no tunnel any more: call without")
        end = _ServersEnd(context, self._port(context.peer()), self._has_room)
        self._ends.add(end)
        try:
            await end.carry()
        except DecodeError:
            code = grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(code, "that is no CarryRequest")
        finally:
            self._ends.discard(end)

    def _has_room(self) -> bool:
        return sum(len(end.calls) for end in self._ends) < self._most


class _ServersEnd:
    """One tunnel, where the calls are answered."""

    def __init__(
        self, context: Any, port: CallPort, has_room: Callable[[], bool]
    ) -> None:
        self._context = context
        self._port = port
        self._has_room = has_room
        self._outbox = _Outbox()
        self.calls: dict[int, asyncio.Task[None]] = {}  # and no answer sent
        self._fewer = asyncio.Event()

    def drain(self) -> None:
        """Have the other end send no more."""
        self._outbox.add(0)

    async def carry(self) -> None:
        """Answer calls until the other end has sent its last.

        Raises DecodeError.
        """
        sending = asyncio.ensure_future(self._send())
        try:
            while (read := await self._context.read()) is not grpc.aio.EOF:
                request = CarryRequest.FromString(read)
                for call in request.calls:
                    await self._until(MOST_CALLS)
                    self._begin(call)
                for number in request.cancelled:
                    if task := self.calls.get(number):
                        task.cancel()
            await self._until(1)
            self._outbox.close()
            await sending
        finally:
            sending.cancel()
            for task in self.calls.values():
                task.cancel()

    async def _until(self, calls: int) -> None:
        """Wait until there are fewer calls than that: who is slow to read waits."""
        while len(self.calls) >= calls:
            self._fewer.clear()
            await self._fewer.wait()

    def _begin(self, call: Call) -> None:
        if call.id in self.calls:
            raise DecodeError
        if self._has_room():
            task = asyncio.ensure_future(self._serve(call))
            task.add_done_callback(partial(self._done, call.id))
            self.calls[call.id] = task
        else:
            told = "too many calls at once"
            code = Code.RESOURCE_EXHAUSTED
            self._outbox.add(Answer(id=call.id, code=code, error=told))

    def _done(self, number: int, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # it has no answer that would end it
            self._ended(number)

    def _ended(self, number: int) -> None:
        self.calls.pop(number, None)
        self._fewer.set()

    async def _serve(self, call: Call) -> None:
        answer = await self._answer(call)
        message, last = answer.message, 0
        # in parts: not every channel takes larger messages
        for last in range(_FULL, len(message), _FULL):
            part = message[last - _FULL : last]
            self._outbox.add(Answer(id=call.id, message=part, more=True))
        if last:
            answer.message = message[last:]
        self._outbox.add(answer)

    async def _answer(self, call: Call) -> Answer:
        given = _metadata(call.metadata)
        timeout = call.timeout_ms / 1000 if call.HasField("timeout_ms") else None
        try:
            reply = await self._port.unary(
                call.method, call.message, metadata=given, timeout=timeout
            )
        except CallError as error:
            return Answer(
                id=call.id,
                code=error.code,
                error=error.message,
                status=error.status,
                headers=_pairs(error.headers),
                trailers=_pairs(error.trailers),
            )
        except Exception:
            _log.exception("internal error")
            return Answer(id=call.id, code=Code.INTERNAL, error="internal error")
        return Answer(
            id=call.id,
            message=reply.message,
            headers=_pairs(reply.headers),
            trailers=_pairs(reply.trailers),
        )

    async def _send(self) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while held := await self._outbox.next():
                answers = [one for one in held if not isinstance(one, int)]
                draining = len(answers) < len(held)
                response = CarryResponse(answers=answers, draining=draining)
                await self._context.write(response.SerializeToString())
                for answer in answers:
                    if not answer.more:
                        self._ended(answer.id)


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
