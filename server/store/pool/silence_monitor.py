"""Finds out whether Postgres is silent, without a round trip per call.

While callers wait and nothing is answered, Postgres is probed on a new connection. A
slow statement or a lock is not silence: the probe succeeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from server.store.connections.faults import is_unreachable

SUSPECT_AFTER_SECONDS = 0.3
MAX_END_SECONDS = 2.0  # of interrupted blocks, when the pool is closed


class SilenceMonitor:
    """Interrupts the blocks of `interruptible` when a probe shows silence."""

    def __init__(
        self,
        probe: Callable[[], Awaitable[object]],
        on_silence: Callable[[Exception], None],
    ) -> None:
        self._probe = probe
        self._on_silence = on_silence
        self._blocks: dict[asyncio.Timeout, float] = {}  # the oldest first
        self._task: asyncio.Task[None] | None = None
        self._answered_at = 0.0
        self._is_closed = False
        self._idle = asyncio.Event()  # once closed: no block is left

    def record_answer(self) -> None:
        """Note that Postgres answered a statement."""
        self._answered_at = asyncio.get_running_loop().time()

    def answered_within(self, seconds: float) -> bool:
        """Return whether the last answer is at most this old."""
        now = asyncio.get_running_loop().time()
        return now - self._answered_at <= seconds

    @asynccontextmanager
    async def interruptible(self) -> AsyncIterator[None]:
        """Run a block that waits for Postgres.

        Raises TimeoutError in a silence, and when the pool is closed.
        """
        if self._is_closed:
            raise TimeoutError("the pool is closed")
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as timeout:
            self._blocks[timeout] = loop.time()
            if self._task is None or self._task.done():
                self._task = loop.create_task(self._watch())
            try:
                yield
            finally:
                del self._blocks[timeout]
                if not self._blocks and self._is_closed:
                    self._idle.set()

    def interrupt(self) -> None:
        """End every block with a TimeoutError."""
        loop = asyncio.get_running_loop()
        for timeout in self._blocks:
            if not timeout.expired():
                timeout.reschedule(loop.time())

    async def _watch(self) -> None:
        """Look at the oldest block at an interval, until none is left."""
        while self._blocks:
            await asyncio.sleep(SUSPECT_AFTER_SECONDS)
            if not self._is_suspicious():
                continue
            try:
                await self._probe()
            except Exception as error:
                if is_unreachable(error):
                    self._on_silence(error)
                    self.interrupt()
            else:
                self.record_answer()

    def _is_suspicious(self) -> bool:
        """Return whether a block waits and nothing was answered for some time."""
        if not self._blocks or self.answered_within(SUSPECT_AFTER_SECONDS):
            return False
        started_at = next(iter(self._blocks.values()))
        loop = asyncio.get_running_loop()
        return loop.time() - started_at >= SUSPECT_AFTER_SECONDS

    async def close(self) -> None:
        """Refuse further blocks, end those that run, and stop watching."""
        self._is_closed = True
        self.interrupt()
        if self._blocks:
            with suppress(TimeoutError):
                async with asyncio.timeout(MAX_END_SECONDS):
                    await self._idle.wait()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
