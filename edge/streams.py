"""Server streams: NDJSON, server-sent events or a JSON array, as they come.

Also what watches a client that may go away, which ends its call.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from edge.errors import DEADLINE_EXCEEDED
from edge.manners.negotiation import EVENTS, JSON, NDJSON
from edge.port import CallError

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
T = TypeVar("T")

_LOOK_AFTER = 0.05  # a call that is done sooner is not watched, which saves a task
_GRACE = 0.25  # the port reports its own deadline first


class Gone(Exception):
    """The client went away; nobody is left to answer."""


class Framing(Protocol):
    """How messages stand in one body."""

    content_type: str
    heartbeat: bytes  # sent while idle, if not empty

    def message(self, text: bytes, resume_token: str) -> bytes:
        """Give one message as it is sent."""

    def error(self, text: bytes) -> bytes:
        """Give the error that ends a stream."""

    def end(self) -> bytes:
        """Give what ends a stream that went well."""


class Lines:
    """One JSON text a line (https://github.com/ndjson/ndjson-spec)."""

    content_type = NDJSON
    heartbeat = b""

    def message(self, text: bytes, resume_token: str) -> bytes:
        """Give a line."""
        return text + b"\n"

    def error(self, text: bytes) -> bytes:
        """Give a last line, whose member `error` no message has."""
        return text + b"\n"

    def end(self) -> bytes:
        """Give nothing: the last line has ended."""
        return b""


class Events:
    """Server-sent events (https://html.spec.whatwg.org/#server-sent-events)."""

    content_type = EVENTS
    heartbeat = b":\n\n"

    def message(self, text: bytes, resume_token: str) -> bytes:
        """Give an event; its id is where a client resumes by Last-Event-ID."""
        known = resume_token and resume_token.isprintable()
        mark = b"id: %s\n" % resume_token.encode() if known else b""
        return mark + b"data: " + text + b"\n\n"

    def error(self, text: bytes) -> bytes:
        """Give an event of type `error`."""
        return b"event: error\ndata: " + text + b"\n\n"

    def end(self) -> bytes:
        """Give nothing: the connection's end is the stream's."""
        return b""


class Array:
    """One JSON array; a stream that failed ends in an element with `error`."""

    content_type = JSON
    heartbeat = b""

    def __init__(self) -> None:
        self._mark = b"["

    def message(self, text: bytes, resume_token: str) -> bytes:
        """Give the next element with what parts it from the last."""
        mark, self._mark = self._mark, b","
        return mark + text

    def error(self, text: bytes) -> bytes:
        """Give the error as the last element, so that the body stays JSON."""
        return self.message(text, "") + b"]"

    def end(self) -> bytes:
        """Close the array, which may be empty."""
        return b"[]" if self._mark == b"[" else b"]"


class Raw:
    """The parts of one google.api.HttpBody; an error can only break it off."""

    heartbeat = b""

    def __init__(self, content_type: str) -> None:
        self.content_type = content_type

    def message(self, text: bytes, resume_token: str) -> bytes:
        """Give a part as it is."""
        return text

    def error(self, text: bytes) -> bytes:
        """Raise, so that the connection breaks before the body's end."""
        raise Gone

    def end(self) -> bytes:
        """Give nothing."""
        return b""


def framing(media: str) -> Framing:
    """Give the framing of a media type."""
    return Lines() if media == NDJSON else Events() if media == EVENTS else Array()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def watched(call: Awaitable[T], receive: Receive, timeout: float | None) -> T:  # noqa: ASYNC109  # gRPC's word for it
    """Await a call for as long as its client is there and its deadline lasts.

    Raises Gone when the client went away; the call is cancelled then. Raises
    CallError when the deadline passed and the port did not say so itself.
    """
    loop = asyncio.get_running_loop()
    mine = asyncio.current_task()
    watchers: list[asyncio.Task[None]] = []
    why: list[Exception] = []

    async def watch() -> None:
        try:
            async with asyncio.timeout(None if timeout is None else timeout + _GRACE):
                await _disconnected(receive)
            why.append(Gone())
        except TimeoutError:
            why.append(CallError(DEADLINE_EXCEEDED, "deadline exceeded"))
        if mine is not None:
            mine.cancel()

    timer = loop.call_later(
        _LOOK_AFTER, lambda: watchers.append(loop.create_task(watch()))
    )
    try:
        return await call
    except asyncio.CancelledError:
        if not why or mine is None or mine.uncancel():
            raise
        raise why[0] from None
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()


class Pump:
    """Moves one stream's messages to a client; sending is what holds it back."""

    def __init__(
        self, messages: AsyncIterator[bytes], receive: Receive, heartbeat: float
    ) -> None:
        self._messages = messages
        self._receive = receive
        self._heartbeat = heartbeat

    async def first(self, timeout: float | None) -> bytes | None:  # noqa: ASYNC109  # gRPC's word for it
        """Give the first message, None if there is none; raises what it ends with."""
        return await watched(anext(self._messages, None), self._receive, timeout)

    async def rest(
        self, beat: Callable[[], Awaitable[None]] | None
    ) -> AsyncIterator[bytes]:
        """Give the further messages; `beat` is called while none comes.

        Raises Gone when the client went away.
        """
        gone = asyncio.ensure_future(_disconnected(self._receive))
        try:
            while (message := await self._next(gone, beat)) is not None:
                yield message
        finally:
            gone.cancel()

    async def _next(
        self,
        gone: "asyncio.Future[None]",
        beat: Callable[[], Awaitable[None]] | None,
    ) -> bytes | None:
        pending = asyncio.ensure_future(anext(self._messages, None))
        try:
            while not pending.done():
                await asyncio.wait(
                    (pending, gone),
                    timeout=self._heartbeat if beat else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if gone.done():
                    raise Gone
                if not pending.done() and beat:
                    await beat()
            return pending.result()
        finally:
            if pending.cancel():
                await asyncio.wait((pending,))

    async def close(self) -> None:
        """End the call, whether or not its stream has ended."""
        close = getattr(self._messages, "aclose", None)
        if close is not None:
            await close()
