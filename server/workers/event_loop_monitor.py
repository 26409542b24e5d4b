"""Measure how late the event loop is: a call that blocks it delays all others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

INTERVAL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class EventLoopMonitor:
    """Sleeps again and again; `observe` gets the seconds by which each sleep was late.

    A task that blocks the loop for less than the interval may fall between two
    wake-ups, the longer the likelier it is seen.
    """

    observe: Callable[[float], None]
    interval_seconds: float = INTERVAL_SECONDS
    name = "event loop monitor"

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due = perf_counter() + self.interval_seconds
            await asyncio.sleep(self.interval_seconds)
            self.observe(max(perf_counter() - due, 0.0))
