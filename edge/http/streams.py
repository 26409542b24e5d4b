"""How streams stand in one body, and the watch over a client that may go away."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from edge.errors import Code
from edge.http.negotiation import EVENTS, JSON, NDJSON
from edge.port import CallError

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

_LOOK_AFTER = 0.05  # most calls are done by then, and need no task to watch them
_GRACE = 0.25  # the port reports its own deadline first


class Gone(Exception):
    """The client went away; nobody is left to answer."""


@dataclass(frozen=True, slots=True)
class Framing:
    """What stands around the messages of one body."""

    start: bytes = b""  # before the first message
    between: bytes = b""  # before each other one
    before: bytes = b""
    after: bytes = b""
    end: bytes = b""
    error: bytes = b""  # before a last frame that is an error
    heartbeat: bytes = b""  # sent while idle, if not empty

    def frame(self, text: bytes, token: str = "", *, first: bool) -> bytes:
        """Give one message as it is sent; `token` is where a client may resume."""
        known = token and self.heartbeat and token.isprintable()
        mark = b"id: %s\n" % token.encode() if known else b""
        edge = self.start if first else self.between
        return b"".join((edge, mark, self.before, text, self.after))

    def last(self, error: bytes) -> bytes:
        """Give what ends a body whose stream failed after its first message."""
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


async def paced(
    messages: AsyncIterator[bytes], idle: float | None
) -> AsyncGenerator[bytes | None, None]:
    """Give the messages, and None whenever none came for `idle` seconds.

    Ends the call in the end, whether or not its stream has ended.
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


class DisconnectMonitor:
    """Has calls watched that last; one timer for all, as one each costs 2 us."""

    def __init__(self) -> None:
        self._new: set[DisconnectGuard] = set()
        self._lasting: set[DisconnectGuard] = set()  # here since the last look
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, watch: "DisconnectGuard") -> None:
        """Have a call watched, unless it is removed soon."""
        self._new.add(watch)
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(_LOOK_AFTER, self._look, loop)

    def remove(self, watch: "DisconnectGuard") -> None:
        """Forget a call that is done."""
        self._new.discard(watch)
        self._lasting.discard(watch)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        for watch in self._lasting:
            watch.start()
        self._lasting, self._new = self._new, set()
        self._loop = loop if self._lasting else None
        if self._lasting:
            loop.call_later(_LOOK_AFTER, self._look, loop)


class DisconnectGuard:
    """Cancels what stands in it once the client is gone or the deadline passed.

    Leaving it raises Gone then, or CallError where the port did not keep the
    deadline itself.
    """

    def __init__(
        self, lookout: DisconnectMonitor, receive: Receive, timeout: float | None
    ) -> None:
        self._disconnect_monitor = lookout
        self._receive = receive
        self._timeout = None if timeout is None else timeout + _GRACE
        self._why: Exception | None = None
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._mine = asyncio.current_task()
        self._disconnect_monitor.add(self)

    def start(self) -> None:
        """Begin to watch."""
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
            self._why = Gone()
        except TimeoutError:
            self._why = CallError(Code.DEADLINE_EXCEEDED, "deadline exceeded")
        if self._mine is not None:
            self._mine.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._disconnect_monitor.remove(self)
        if self._watcher is None:
            return
        self._watcher.cancel()
        cancelled = isinstance(error, asyncio.CancelledError)
        if cancelled and self._why and self._mine and not self._mine.uncancel():
            raise self._why from None
