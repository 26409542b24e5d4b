"""EventLoopMonitor: a blocked loop is seen with the time for which it was blocked."""

import asyncio
import time

from server.workers.event_loop_monitor import EventLoopMonitor

BLOCKED_SECONDS = 0.1


async def test_event_loop_monitor_observes_how_late_the_loop_is() -> None:
    lags: list[float] = []
    observed = asyncio.Event()

    def observe(seconds: float) -> None:
        lags.append(seconds)
        observed.set()

    task = asyncio.create_task(EventLoopMonitor(observe, 0.01).run())
    async with asyncio.timeout(10):
        await observed.wait()
        observed.clear()
        await asyncio.sleep(0)
        time.sleep(BLOCKED_SECONDS)  # noqa: ASYNC251 - it blocks the loop
        await observed.wait()
    task.cancel()
    assert max(lags) >= BLOCKED_SECONDS - 0.02
