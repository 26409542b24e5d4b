"""EventBuffer: the last events that a process has read, for any number of streams.

Each stream reads from the buffer at its own pace. A stream that falls behind the
buffer reads the store again; it delays no other stream and uses no memory of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import islice
from typing import Generic, TypeVar

from server.domain.errors import ServerStopping, StoreUnavailable

Item = TypeVar("Item")
MAX_ITEMS = 10_000
HEARTBEAT = timedelta(seconds=10)
TICKS_PER_WAIT = 5  # a wait may be longer by one of them
STALE_AFTER = timedelta(seconds=5)  # without a successful read


class EventBuffer(Generic[Item]):
    """The last items, numbered from 0 in the order of reading."""

    def __init__(
        self, max_items: int = MAX_ITEMS, stale_after: timedelta = STALE_AFTER
    ) -> None:
        self._items: deque[Item] = deque(maxlen=max_items)
        self._changed = asyncio.Event()
        self._ticker: asyncio.TimerHandle | None = None
        self._closed = False
        self._stale_after = stale_after.total_seconds()
        self._read_at = 0.0
        self.end = 0  # the number of the next item

    def extend(self, items: Iterable[Item]) -> None:
        """Add the items of a successful read; there may be none."""
        before = self.end
        for item in items:
            self._items.append(item)
            self.end += 1
        self._read_at = asyncio.get_running_loop().time()
        if self.end != before:
            self._wake()

    def since(self, number: int) -> Sequence[Item] | None:
        """Return the items from this number on; None if they are no longer buffered."""
        skipped = number - (self.end - len(self._items))
        return None if skipped < 0 else list(islice(self._items, skipped, None))

    async def wait(self, number: int, max_wait: timedelta) -> bool:
        """Wait for an item; return whether it was added within `max_wait`.

        Raises ServerStopping; and StoreUnavailable if no read has succeeded for
        `stale_after`, because a heartbeat would say that there was no event.
        """
        loop = asyncio.get_running_loop()
        due = loop.time() + max_wait.total_seconds()
        while self.end <= number and not self._closed:
            if loop.time() >= due:
                if loop.time() - self._read_at > self._stale_after:
                    raise StoreUnavailable
                return False
            self._tick_after(max_wait / TICKS_PER_WAIT)
            await self._changed.wait()
        if self._closed:
            raise ServerStopping
        return True

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        self._wake()

    def check(self) -> None:
        """Raise ServerStopping if the streams have ended."""
        if self._closed:
            raise ServerStopping

    def _tick_after(self, interval: timedelta) -> None:
        """Wake all streams once, so that each checks its time.

        One timer for all: a timer for each wait of each stream took a third of the CPU
        time of a delivered event.
        """
        if self._ticker is None:
            loop = asyncio.get_running_loop()
            self._ticker = loop.call_later(interval.total_seconds(), self._tick)

    def _tick(self) -> None:
        self._ticker = None
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
