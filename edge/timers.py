"""One event-loop timer for many short-lived entries: one each costs 2 us."""

import asyncio
from time import monotonic
from typing import Protocol


class TimerEntry(Protocol):
    """Something that expires."""

    due: float  # by time.monotonic()

    def expire(self) -> None:
        """End what took too long; called once."""


class SharedTimer:
    """Expires entries once they are due, at most `interval` seconds late."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._entries: set[TimerEntry] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, entry: TimerEntry) -> None:
        """Expire an entry unless it is removed before it is due."""
        self._entries.add(entry)
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(self._interval, self._expire_due, loop)

    def remove(self, entry: TimerEntry) -> None:
        """Forget an entry; it may have expired."""
        self._entries.discard(entry)

    def _expire_due(self, loop: asyncio.AbstractEventLoop) -> None:
        now = monotonic()
        for entry in [entry for entry in self._entries if entry.due <= now]:
            self._entries.discard(entry)
            entry.expire()
        self._loop = loop if self._entries else None
        if self._entries:
            loop.call_later(self._interval, self._expire_due, loop)
