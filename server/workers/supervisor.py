"""Run background tasks for as long as a process serves, and restart those that end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import structlog

from server.domain.errors import StoreUnavailable

log = structlog.get_logger()
RESTART_DELAY = timedelta(seconds=1)
STABLE_AFTER_SECONDS = 10.0  # a task that ran this long has recovered from an outage
CANCEL_INTERVAL_SECONDS = 0.2


class Task(Protocol):
    """Background work that does not end by itself."""

    @property
    def name(self) -> str:
        """Return the name under which failures are logged."""

    async def run(self) -> None:
        """Work until cancelled."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A task that receives messages; `listen` raises when its connection is lost."""

    name: str
    listen: Callable[[], Awaitable[None]]

    async def run(self) -> None:
        """Receive messages until the connection is lost."""
        await self.listen()


@asynccontextmanager
async def supervise(
    *tasks: Task,
    restart_delay: timedelta = RESTART_DELAY,
    restarts: Counter[str] | None = None,
) -> AsyncIterator[None]:
    """Run tasks until the block ends; restart each one that fails or returns.

    `restarts` counts them by the task's name.
    """
    counts = Counter[str]() if restarts is None else restarts
    counts.update({task.name: 0 for task in tasks})
    running = [
        asyncio.create_task(_restart(task, restart_delay, counts)) for task in tasks
    ]
    try:
        yield
    finally:
        await _cancel(running)


async def _restart(task: Task, delay: timedelta, restarts: Counter[str]) -> None:
    """Run a task again and again; log the first failure of an outage only."""
    loop = asyncio.get_running_loop()
    outage_logged = False
    while True:
        started_at = loop.time()
        try:
            await task.run()
        except StoreUnavailable as error:
            if loop.time() - started_at >= STABLE_AFTER_SECONDS:
                outage_logged = False
            if not outage_logged:
                cause = repr(error.__cause__)
                log.warning("background task interrupted", task=task.name, cause=cause)
            outage_logged = True
        except Exception:
            log.exception("background task failed", task=task.name)
        await asyncio.sleep(delay.total_seconds())
        restarts[task.name] += 1


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel until all have ended: redis-py may swallow a cancellation in connect()."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_INTERVAL_SECONDS)
