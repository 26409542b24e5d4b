"""Periodic jobs: recount members' statistics and send digests, in any process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from server.domain.clock import Clock

BATCH_SIZE = 100
# per turn, so that neither job waits long for the other
MAX_BATCHES = 10
MAX_DIGESTS = 100
INTERVAL = timedelta(seconds=1)
DIGEST_AFTER = timedelta(days=1)


class StaleCounts(Protocol):
    """Stores the statistics of members."""

    async def count(self, size: int, now: datetime) -> int:
        """Recount at most `size` members whose counts are stale; return how many."""


class Digests(Protocol):
    """Stores notifications until they are mailed."""

    async def digest(self, before: datetime, now: datetime) -> bool:
        """Mail one member all their notifications if the oldest is from before then.

        Return whether there was such a member.
        """


@dataclass(slots=True)
class PeriodicJobs:
    """Jobs that several processes share: each takes what no other has locked."""

    counts: StaleCounts
    notifications: Digests
    clock: Clock
    _unfinished: bool = field(default=False, init=False)

    def interval(self) -> timedelta:
        """Return the time until the next turn: none if work remains."""
        return timedelta(0) if self._unfinished else INTERVAL

    async def run_once(self) -> None:
        """Recount what is stale and send the digests that are due, to a maximum.

        Raises StoreUnavailable.
        """
        now = self.clock()
        self._unfinished = False
        await self._repeat(lambda: self._count(now), MAX_BATCHES)
        digests = self.notifications
        await self._repeat(lambda: digests.digest(now - DIGEST_AFTER, now), MAX_DIGESTS)

    async def _count(self, now: datetime) -> bool:
        return await self.counts.count(BATCH_SIZE, now) == BATCH_SIZE

    async def _repeat(self, step: Callable[[], Awaitable[bool]], times: int) -> None:
        """Repeat a step until nothing remains to do, at most so many times."""
        for _ in range(times):
            if not await step():
                return
        self._unfinished = True
