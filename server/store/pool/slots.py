"""Slots: how many callers may hold a connection of the pool, and the queue of others.

They are in front of SQLAlchemy's pool, whose queue does not wake a caller when another
one fails to connect, and does not count those that wait.

Under overload a long queue only makes every call late. So it is kept short, as CoDel
does it (RFC 8289): if for the whole of `wait_seconds` nobody got a slot quickly,
callers wait for OVERLOADED_WAIT_SECONDS only. One pause, however long, is no overload.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

OVERLOADED_WAIT_SECONDS = 0.06
QUICK_SECONDS = OVERLOADED_WAIT_SECONDS / 2


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """The state of the pool: connections, waiting callers, and timeouts in all."""

    in_use: int
    idle: int
    waiting: int
    timeouts: int


class PoolTimeout(TimeoutError):
    """No connection of the pool became free in time."""


class Slots:
    """A bounded number of slots, given out in the order of arrival."""

    def __init__(self, size: int, wait_seconds: float) -> None:
        self._semaphore = asyncio.Semaphore(size)
        self._wait_seconds = wait_seconds
        self._quick_at = 0.0  # when a caller last got a slot quickly
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
            self._quick_at = monotonic()
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1
            self._semaphore.release()

    async def _wait(self) -> None:
        started = monotonic()
        if not self.waiting:
            self._quick_at = started  # so far nobody has waited
        self.waiting += 1
        try:
            async with asyncio.timeout(self._max_wait(started)):
                await self._semaphore.acquire()
        except TimeoutError:
            self.timeouts += 1
            raise PoolTimeout from None
        finally:
            self.waiting -= 1
        now = monotonic()
        if now - started < QUICK_SECONDS:
            self._quick_at = now

    def _max_wait(self, now: float) -> float:
        """Return how long a caller may wait, in seconds."""
        if now - self._quick_at <= self._wait_seconds:
            return self._wait_seconds
        return min(OVERLOADED_WAIT_SECONDS, self._wait_seconds)
