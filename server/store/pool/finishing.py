"""A statement that its caller no longer waits for is given a moment to finish.

A cancelled statement costs its connection: Postgres is sent a cancel request, and
another connection has to be made. Clients that cancel thousands of calls in a second
would keep Postgres busy with connections. Most statements end within a millisecond.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")
FINISH_SECONDS = 0.05  # then the statement is cancelled in Postgres
_left: set[asyncio.Task[Any]] = set()


async def finishing(work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`. If the caller is cancelled, it may go on for FINISH_SECONDS."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        leave(task)
        raise


def leave(task: asyncio.Task[Any]) -> None:
    """Let a task go on without its caller; cancel it after FINISH_SECONDS."""
    if not task.done():
        keep(task)
        asyncio.get_running_loop().call_later(FINISH_SECONDS, task.cancel)


def keep(task: asyncio.Task[Any]) -> None:
    """Let a task end in the background."""
    _left.add(task)
    task.add_done_callback(_forget)


def _forget(task: asyncio.Task[Any]) -> None:
    _left.discard(task)
    if not task.cancelled():
        task.exception()  # nobody else reads it


async def left() -> None:
    """Wait for the end of what callers have left."""
    if _left:
        await asyncio.wait(_left)
