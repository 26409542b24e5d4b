"""Replica: whether a streaming replica is near enough to the primary to read from it.

The position of the primary is noted once per interval. As soon as the replica has
replayed it, the replica has every commit that was answered before that moment. No clock
of another machine is compared, and an idle primary makes no lag.
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta

import structlog

from server.store.connections.connect import Database
from server.store.pool.reader import Reader
from server.store.replica.position import mismatch, position_of

log = structlog.get_logger()
COMPARE_INTERVAL = timedelta(seconds=1)
MAX_NOTED = 600  # of a replica that is further behind, the lag shown is too large


class Replica:
    """A replica, compared with the primary by `refresh`.

    What it shows lacks at most `max_lag` of the primary's commits while it `is_usable`:
    also if nobody calls `refresh` any more, because then it soon is not.
    """

    def __init__(self, primary: Reader, database: Database, max_lag: timedelta) -> None:
        self.database = database
        self._primary = primary
        self._max_lag = max_lag.total_seconds()
        # position of the primary, and when it was asked for; the oldest first
        self._noted: deque[tuple[int, float]] = deque(maxlen=MAX_NOTED)
        self._complete_until: float | None = None  # the replica has what came before
        self._mismatch = ""
        self._was_usable: bool | None = None  # None before the first comparison

    @property
    def lag(self) -> float | None:
        """Seconds since the last moment whose commits it all has; None if unknown."""
        if self._complete_until is None:
            return None
        return asyncio.get_running_loop().time() - self._complete_until

    @property
    def is_usable(self) -> bool:
        """Whether it answers and is at most `max_lag` behind."""
        lag = self.lag
        is_near = lag is not None and lag <= self._max_lag
        return is_near and not self.database.is_degraded

    @property
    def is_degraded(self) -> bool:
        """Whether the primary is read in its place; not before the first comparison."""
        return self._was_usable is not None and not self.is_usable

    async def refresh(self) -> None:
        """Compare the servers. Raises StoreUnavailable and the driver's errors."""
        try:
            await self._compare()
        finally:
            self._log_change()

    async def _compare(self) -> None:
        # the replica first: afterwards the primary cannot be behind it
        replica = await position_of(self.database)
        asked_at = asyncio.get_running_loop().time()
        primary = await position_of(self._primary)
        self._mismatch = mismatch(primary, replica)
        if self._mismatch:
            self._noted.clear()
            self._complete_until = None
            return
        self._noted.append((primary.bytes, asked_at))
        if not replica.is_standby:  # the primary itself
            self._complete_until = asked_at
        while self._noted and self._noted[0][0] <= replica.bytes:
            self._complete_until = self._noted.popleft()[1]

    def _log_change(self) -> None:
        """Log that the replica is not read any more, or again."""
        is_usable = self.is_usable
        if is_usable is self._was_usable:
            return
        if is_usable:
            log.info("replica is read", lag=self.lag)
        else:
            cause = self._mismatch or "it does not answer, or lags too much"
            log.warning("replica is not read", cause=cause, lag=self.lag)
        self._was_usable = is_usable
