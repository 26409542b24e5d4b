"""Deadlines of calls, all kept by one timer: a timer each costs more than a call."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Protocol

TIMER_INTERVAL = 0.02  # seconds by which a call may outlive its deadline


class DeadlineTimer(Protocol):
    """Expires the deadlines that are due."""

    def add(self, entry: Deadline) -> None:
        """Expire a deadline unless it is removed before it is due."""

    def remove(self, entry: Deadline) -> None:
        """Forget a deadline."""


class Deadline:
    """Cancels its block once `due`, by time.monotonic(), has passed.

    Leaving the block raises TimeoutError then, as asyncio.timeout does.
    """

    __slots__ = ("_before", "_task", "_timer", "due", "expired")

    def __init__(self, timer: DeadlineTimer, due: float) -> None:
        self._timer = timer
        self.due = due
        self.expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # every call runs in a task
        self._task, self._before = task, task.cancelling()
        if self.due != math.inf:  # the timer reads all entries every 20 ms
            self._timer.add(self)

    def expire(self) -> None:
        """Cancel the block."""
        self.expired = True
        self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.remove(self)
        if not self.expired or self._task.uncancel() > self._before:
            return
        if kind is asyncio.CancelledError:
            raise TimeoutError from error
