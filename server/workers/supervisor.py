"""Work that goes on beside the calls, for as long as the process serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import structlog

log = structlog.get_logger()
SECONDS_BETWEEN_CANCELS = 0.2
Task = Callable[[], Awaitable[None]]


@asynccontextmanager
async def supervise(*tasks: Task, pause: float = 1.0) -> AsyncIterator[None]:
    """Keep endless works going until the block ends, whatever befalls them.

    One that fails or returns is begun anew after `pause` seconds.
    """
    running = [asyncio.create_task(_restart(task, pause)) for task in tasks]
    try:
        yield
    finally:
        await _ended(running)


async def _restart(task: Task, pause: float) -> None:
    """Begin anew what fails: what a process knows must not silently grow old."""
    while True:
        try:
            await task()
        except Exception:
            log.exception("background work failed")
        await asyncio.sleep(pause)


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel until all have ended: redis-py, connecting, may swallow one."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=SECONDS_BETWEEN_CANCELS)
