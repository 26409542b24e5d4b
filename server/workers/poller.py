"""Poller: calls a function at an interval, and at once when it is woken up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from server.domain.errors import StoreUnavailable

log = structlog.get_logger()
Interval = timedelta | Callable[[], timedelta]


@dataclass(slots=True)
class Poller:
    """Calls `refresh`, waits for `interval` or for `wake`, and begins again.

    An interval that depends on the last refresh is a function. `min_interval` always
    passes between two calls, so that many wake-ups cost one call. `before_serving`
    says that a process must not serve before `refresh` has succeeded once.
    """

    name: str
    refresh: Callable[[], Awaitable[object]]
    interval: Interval
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    min_interval: timedelta = timedelta(0)
    before_serving: bool = False
    _failure: type[Exception] | None = field(default=None, init=False)

    async def run(self) -> None:
        """Poll until cancelled; a failed refresh is logged and tried again."""
        while True:
            self.wake.clear()  # before reading: a later wake-up is not lost
            try:
                await self.refresh()
            except Exception as error:
                self._log_failure(error)
            else:
                self._log_recovery()
            if self.min_interval:
                await asyncio.sleep(self.min_interval.total_seconds())
            await self._wait()

    async def _wait(self) -> None:
        interval = self.interval() if callable(self.interval) else self.interval
        with suppress(TimeoutError):
            async with asyncio.timeout(interval.total_seconds()):
                await self.wake.wait()

    def _log_failure(self, error: Exception) -> None:
        """Log a failure once, not at every attempt while it lasts."""
        if type(error) is self._failure:
            return
        self._failure = type(error)
        if isinstance(error, StoreUnavailable):
            log.warning("poll failed", task=self.name, cause=repr(error.__cause__))
        else:
            log.error("poll failed", task=self.name, exc_info=error)

    def _log_recovery(self) -> None:
        if self._failure:
            log.info("poll recovered", task=self.name)
        self._failure = None
