"""Startup: what a process reads before it serves, now or when Postgres appears."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import structlog

from server.domain.errors import StoreUnavailable
from server.store.connections.faults import describe_fault, is_misconfigured
from server.workers.supervisor import Task, supervise

log = structlog.get_logger()
RETRY_INTERVAL_SECONDS = 0.5
Step = Callable[[], Awaitable[object]]


class Startup:
    """Runs steps in their order until all have succeeded, then the tasks.

    `complete` is whether calls may be served. An error that waiting
    cannot fix, such as a wrong password, ends the startup: `check` raises it.
    """

    name = "startup"

    def __init__(self, *steps: Step, restarts: Counter[str] | None = None) -> None:
        self.restarts: Counter[str] = Counter() if restarts is None else restarts
        self._steps = list(steps)
        self._tasks: list[Task] = []
        self._failure: Exception | None = None
        self._waiting = False
        self.complete = False

    def add(self, steps: Iterable[Step], tasks: Iterable[Task]) -> None:
        """Add steps after the present ones, and tasks to run once all succeeded."""
        self._steps.extend(steps)
        self._tasks.extend(tasks)

    async def attempt(self) -> None:
        """Run the steps; return without completing if Postgres does not respond.

        Raises an error that waiting cannot fix.
        """
        try:
            for step in self._steps:
                await step()
        except StoreUnavailable as error:
            if is_misconfigured(error.__cause__ or error):
                raise
            if not self._waiting:
                cause = describe_fault(error.__cause__ or error)
                log.warning("waiting for postgres", cause=cause)
            self._waiting = True
        else:
            self.complete = True

    async def run(self) -> None:
        """Attempt until complete, then run the tasks, until cancelled."""
        while not self.complete:
            await asyncio.sleep(RETRY_INTERVAL_SECONDS)
            try:
                await self.attempt()
            except Exception as error:
                self._failure = error
                await asyncio.Event().wait()
        async with supervise(*self._tasks, restarts=self.restarts):
            await asyncio.Event().wait()

    def check(self) -> None:
        """Raise what ended the startup."""
        if self._failure:
            raise self._failure
