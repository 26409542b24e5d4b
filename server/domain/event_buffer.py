"""What one reader of a process reads, given to any number of watchers.

Watchers pull, each at its own pace, from the same tail. One that falls behind it is
told so and reads the stores again; nobody waits for it, and nothing is kept for it.
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
STALE_AFTER = timedelta(seconds=5)  # a reader that could not read for so long is silent


class EventBuffer(Generic[Item]):
    """The last items that were read, numbered from 0 in the order of reading."""

    def __init__(
        self, max_items: int = MAX_ITEMS, stale_after: timedelta = STALE_AFTER
    ) -> None:
        self._items: deque[Item] = deque(maxlen=max_items)
        self._changed = asyncio.Event()
        self._closed = False
        self._stale_after = stale_after.total_seconds()
        self._read_at = 0.0
        self.end = 0  # the number of the next item

    def extend(self, items: Iterable[Item]) -> None:
        """Add what was read, if it was anything, and note that it could be read."""
        before = self.end
        for item in items:
            self._items.append(item)
            self.end += 1
        self._read_at = asyncio.get_running_loop().time()
        if self.end != before:
            self._wake()

    def since(self, number: int) -> Sequence[Item] | None:
        """Give the items from this one on; None if it is no longer held."""
        skipped = number - (self.end - len(self._items))
        return None if skipped < 0 else list(islice(self._items, skipped, None))

    async def wait(self, number: int, patience: timedelta) -> bool:
        """Wait for this item; tell whether it came in time.

        Raises ServerStopping, and StoreUnavailable once nothing could be read for
        seconds: silence would be taken for peace.
        """
        try:
            async with asyncio.timeout(patience.total_seconds()):
                while self.end <= number and not self._closed:
                    await self._changed.wait()
        except TimeoutError:
            if asyncio.get_running_loop().time() - self._read_at > self._stale_after:
                raise StoreUnavailable from None
            return False
        if self._closed:
            raise ServerStopping
        return True

    def close(self) -> None:
        """End every watch."""
        self._closed = True
        self._wake()

    def check(self) -> None:
        """Raise ServerStopping if the watches have ended."""
        if self._closed:
            raise ServerStopping

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
