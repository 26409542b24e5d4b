"""Slots: how many callers may hold a connection of the pool, and the queue of others.

They are in front of SQLAlchemy's pool, whose queue does not wake a caller when another
one fails to connect, and does not count those that wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

from server.domain.deadlines import time_left

_WEIGHT = 0.05  # of the latest caller in the mean time for which a slot is held


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """The state of the pool: connections, waiting callers, and timeouts in all."""

    in_use: int
    idle: int
    waiting: int
    timeouts: int


class PoolTimeout(TimeoutError):
    """No connection of the pool becomes free in time."""


class Slots:
    """A bounded number of slots, given out in the order of arrival.

    A caller whose turn would come too late is refused at once: it would otherwise
    learn that only after its wait, and calls that nobody waits for would be answered.
    """

    def __init__(self, size: int, wait_seconds: float) -> None:
        self._semaphore = asyncio.Semaphore(size)
        self._size = size
        self._wait_seconds = wait_seconds
        self._mean_held = 0.0  # seconds
        self.in_use = 0
        self.waiting = 0
        self.timeouts = 0

    @property
    def exhausted(self) -> bool:
        """Whether a caller would have to wait."""
        return self._semaphore.locked()

    @asynccontextmanager
    async def acquired(self) -> AsyncIterator[None]:
        """Hold a slot. Raises PoolTimeout."""
        if self._semaphore.locked():
            await self._wait()
        else:
            await self._semaphore.acquire()  # does not wait
        self.in_use += 1
        started_at = monotonic()
        try:
            yield
        finally:
            self.in_use -= 1
            self._semaphore.release()
            # One that waited for a lock says little about those that do not.
            held = min(monotonic() - started_at, self._wait_seconds)
            self._mean_held += _WEIGHT * (held - self._mean_held)

    async def _wait(self) -> None:
        expected = (self.waiting + 1) * self._mean_held / self._size
        if expected > min(self._wait_seconds, time_left()):
            self.timeouts += 1
            raise PoolTimeout
        self.waiting += 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._semaphore.acquire()
        except TimeoutError:
            self.timeouts += 1
            raise PoolTimeout from None
        finally:
            self.waiting -= 1
