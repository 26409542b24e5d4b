"""Rounds: what is counted and told from time to time, by any process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from server.domain.clock import Clock
from server.domain.errors import StoreUnavailable

log = structlog.get_logger()
BATCH = 100
SECONDS_BETWEEN_ROUNDS = 1.0
DIGEST_AFTER = timedelta(days=1)


class StaleCounts(Protocol):
    """Keeps what is counted of members."""

    async def count(self, size: int, now: datetime) -> int:
        """Count some members anew who need it; give how many those were."""


class Digests(Protocol):
    """Keeps what members want to be told."""

    async def digest(self, before: datetime, now: datetime) -> bool:
        """Mail one member all their news, if the oldest is from before then.

        Gives whether there was one.
        """


@dataclass(frozen=True, slots=True)
class PeriodicJobs:
    """Goes round for as long as the process serves; others take what it does not."""

    counts: StaleCounts
    notifications: Digests
    clock: Clock
    pause: float = SECONDS_BETWEEN_ROUNDS

    async def run(self) -> None:
        """Go round until cancelled."""
        while True:
            try:
                await self.run_once()
            except StoreUnavailable as error:
                log.warning("nothing can be counted", cause=repr(error.__cause__))
            await asyncio.sleep(self.pause)

    async def run_once(self) -> None:
        """Count all that is stale, and send the digests that are due."""
        now = self.clock()
        while await self.counts.count(BATCH, now) == BATCH:
            pass
        while await self.notifications.digest(now - DIGEST_AFTER, now):
            pass
