"""Wait for the answer of a store, without the time that this process is late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

CHECKS = 50  # an answer, with a new connection, needs several turns of the event loop


async def answer_time(request: Awaitable[object], limit: float) -> float:
    """Wait for a request; return about how many seconds the store took.

    The time is counted in checks by the event loop. A pause of this process, a blocked
    event loop or a lack of CPU time delays the checks as much as it delays the answer,
    and is no fault of the store. Raises TimeoutError if no answer has arrived after
    `limit` seconds, and the errors of the request.
    """
    interval = limit / CHECKS
    task = asyncio.ensure_future(request)
    try:
        for checks in range(CHECKS):
            await asyncio.wait((task,), timeout=interval)
            if task.done():
                await task
                return checks * interval
        raise TimeoutError
    finally:
        if task.cancel():
            await asyncio.wait((task,))
