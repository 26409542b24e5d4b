"""Work that goes on beside the calls, for as long as the process serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog

log = structlog.get_logger()
SECONDS_BETWEEN_CANCELS = 0.2


@asynccontextmanager
async def following(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run endless works until the block ends; one that fails is an error in the log."""
    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(_report)
    try:
        yield
    finally:
        await _ended(tasks)


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel until all have ended: redis-py, connecting, may swallow one."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=SECONDS_BETWEEN_CANCELS)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception():
        log.error("background work failed", exc_info=task.exception())
