"""How long a crashed worker's restart waits."""

from __future__ import annotations

from datetime import timedelta

FIRST_DELAY = timedelta(seconds=0.5)
MAX_DELAY = timedelta(seconds=30)
STABLE_AFTER = timedelta(seconds=5)  # a worker that ran this long has started well


class Backoff:
    """Delays of one worker's restarts: none, then exponential with jitter.

    A crash of a stable worker is followed by a restart at once. Workers that crash at
    the same time for the same cause do not restart at the same time.
    """

    def __init__(self) -> None:
        self.failures = 0  # since the last worker that ran for a while

    def next_delay(self, uptime: timedelta, jitter: float) -> timedelta:
        """Return the delay after a crash; `jitter` is from 0 to 1."""
        if uptime >= STABLE_AFTER:
            self.failures = 0
        self.failures += 1
        if self.failures == 1:
            return timedelta(0)
        doublings = min(self.failures - 2, 10)
        delay = min(FIRST_DELAY * float(2**doublings), MAX_DELAY)
        return delay * (0.5 + jitter / 2)
