"""Deadlines of calls, all held by one timer: one each costs more than a warm call.

A call may outlive its deadline by TICK.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

TICK = 0.02  # seconds


class Deadlines:
    """Watches over the calls of one loop."""

    def __init__(self) -> None:
        self._watched: set[Deadline] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, deadline: Deadline) -> None:
        """Watch over a call until it is removed."""
        self._watched.add(deadline)
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(TICK, self._look, loop)

    def remove(self, deadline: Deadline) -> None:
        """Forget a call that is done."""
        self._watched.discard(deadline)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for deadline in [one for one in self._watched if one.ends <= now]:
            self._watched.discard(deadline)
            deadline.expire()
        self._loop = loop if self._watched else None
        if self._watched:
            loop.call_later(TICK, self._look, loop)


_deadlines = Deadlines()


class Deadline:
    """Cancels what stands in it once `ends`, the loop's time, has passed.

    Leaving it raises TimeoutError then, as asyncio.timeout does.
    """

    __slots__ = ("_before", "_task", "ends", "expired")

    def __init__(self, ends: float) -> None:
        self.ends = ends
        self.expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a call is a task's work
        self._task, self._before = task, task.cancelling()
        _deadlines.add(self)

    def expire(self) -> None:
        """End what stands in it."""
        self.expired = True
        self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _deadlines.remove(self)
        if not self.expired or self._task.uncancel() > self._before:
            return
        if kind is asyncio.CancelledError:
            raise TimeoutError from error
