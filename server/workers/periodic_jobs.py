"""Periodic jobs: recount members' statistics and send digests, in any process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from server.domain.clock import Clock

BATCH_SIZE = 100
INTERVAL = timedelta(minutes=1)  # unless a signal wakes them up
MIN_INTERVAL = timedelta(seconds=1)
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


@dataclass(frozen=True, slots=True)
class PeriodicJobs:
    """Jobs that several processes share: each takes what no other has locked."""

    counts: StaleCounts
    notifications: Digests
    clock: Clock

    async def run_once(self) -> None:
        """Recount all that is stale and send the digests that are due.

        Raises StoreUnavailable.
        """
        now = self.clock()
        while await self.counts.count(BATCH_SIZE, now) == BATCH_SIZE:
            pass
        while await self.notifications.digest(now - DIGEST_AFTER, now):
            pass
