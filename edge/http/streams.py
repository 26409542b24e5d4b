"""Framings of streams, and calls that end when their client disconnects."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any

from edge.errors import DEADLINE_MESSAGE, Code
from edge.http.negotiation import EVENTS, JSON, NDJSON
from edge.port import CallError
from edge.timers import SharedTimer

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

# Seconds; most calls are done earlier and need no task that watches the client.
_WATCH_AFTER = WATCH_INTERVAL = 0.05
_PORT_GRACE = 0.25  # seconds for the port to report its own deadline first


class Disconnected(Exception):
    """The client disconnected, so no response can be sent."""


@dataclass(frozen=True, slots=True)
class Framing:
    """The bytes around the messages in one body."""

    start: bytes = b""  # before the first message
    between: bytes = b""  # before each other one
    before: bytes = b""
    after: bytes = b""
    end: bytes = b""
    error: bytes = b""  # before a last frame that is an error
    heartbeat: bytes = b""  # sent while idle, if not empty

    def frame(self, text: bytes, token: str = "", *, first: bool) -> bytes:
        """Return a message with its framing; `token` is where a client may resume."""
        has_id = token and self.heartbeat and token.isprintable()
        event_id = b"id: %s\n" % token.encode() if has_id else b""
        prefix = self.start if first else self.between
        return b"".join((prefix, event_id, self.before, text, self.after))

    def last(self, error: bytes) -> bytes:
        """Return the end of a body whose stream failed after its first message."""
        return self.error + self.frame(error, first=False) + self.end


RAW = Framing()  # the parts of a google.api.HttpBody
FRAMINGS = {
    # A stream that failed ends in an element with `error`, so that it stays JSON.
    JSON: Framing(start=b"[", between=b",", end=b"]"),
    # https://github.com/ndjson/ndjson-spec
    NDJSON: Framing(after=b"\n"),
    # https://html.spec.whatwg.org/#server-sent-events
    EVENTS: Framing(
        before=b"data: ", after=b"\n\n", error=b"event: error\n", heartbeat=b":\n\n"
    ),
}


async def with_idle_markers(
    messages: AsyncIterator[bytes], idle: float | None
) -> AsyncGenerator[bytes | None, None]:
    """Yield the messages, and None whenever none came for `idle` seconds.

    Closing it ends the call, whether or not its stream has ended.
    """
    try:
        while True:
            pending = asyncio.ensure_future(anext(messages, None))
            while not (await asyncio.wait((pending,), timeout=idle))[0]:
                yield None
            message = pending.result()
            if message is None:
                return
            yield message
    finally:
        if pending.cancel():
            await asyncio.wait((pending,))
        close = getattr(messages, "aclose", None)
        if close is not None:
            await close()


class DisconnectGuard:
    """Cancels its block once the client disconnects or the deadline passes.

    Leaving the block raises Disconnected then, or CallError where the port did not
    keep the deadline itself. Short calls need no task: `timer` starts it later.
    """

    def __init__(
        self, timer: SharedTimer, receive: Receive, timeout: float | None
    ) -> None:
        self._timer = timer
        self._receive = receive
        self._timeout = None if timeout is None else timeout + _PORT_GRACE
        self._cause: Exception | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.due = monotonic() + _WATCH_AFTER

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._timer.add(self)

    def expire(self) -> None:
        """Start to watch the client: the call is not a short one."""
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
            self._cause = Disconnected()
        except TimeoutError:
            self._cause = CallError(Code.DEADLINE_EXCEEDED, DEADLINE_MESSAGE)
        if self._task is not None:
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.remove(self)
        if self._watcher is None:
            return
        self._watcher.cancel()
        cancelled = isinstance(error, asyncio.CancelledError)
        if cancelled and self._cause and self._task and not self._task.uncancel():
            raise self._cause from None
