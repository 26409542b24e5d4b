"""Retention: delete expired rows and erase accounts that were deleted long ago.

Each deletion and each erasure has a share of a sweep's time. One that is slow is
continued by a later sweep, one that fails is logged: neither delays the others. A
sweep erases a page of accounts, so that expired rows do not wait for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from server.domain.clock import Clock
from server.domain.errors import StoreUnavailable

log = structlog.get_logger()
SWEEP_INTERVAL = timedelta(minutes=1)
CONTINUE_AFTER = timedelta(seconds=1)
BUDGET = timedelta(seconds=10)
PAGE_SIZE = 100  # accounts per sweep
Deletion = Callable[[], Awaitable[bool]]


class ExpiredRows(Protocol):
    """Stores rows that have a retention."""

    def deletions(self, now: datetime) -> Sequence[tuple[str, Deletion]]:
        """Return named deletions of a batch, which return whether more may remain."""


class ErasureStore(Protocol):
    """Erases accounts in batches."""

    async def due(
        self, deleted_before: datetime, after: int, size: int
    ) -> Sequence[int]:
        """Return ids of accounts to erase, in the order of ids."""

    async def erase(
        self, user_id: int, now: datetime, deleted_before: datetime, budget: timedelta
    ) -> bool:
        """Begin or continue an erasure; return whether it is complete."""


@dataclass(slots=True)
class Retention:
    """Sweeps; several processes may do so at the same time."""

    rows: ExpiredRows
    erasures: ErasureStore
    user_retention: timedelta
    clock: Clock
    budget: timedelta = BUDGET
    _unfinished: bool = field(default=False, init=False)
    _last_erased: int = field(default=0, init=False)  # 0: a sweep begins again

    def interval(self) -> timedelta:
        """Return the time until the next sweep, short if work remains."""
        return CONTINUE_AFTER if self._unfinished else SWEEP_INTERVAL

    async def sweep(self) -> None:
        """Run every deletion and a page of due erasures, each within the budget.

        Raises StoreUnavailable if the accounts to erase cannot be read.
        """
        now = self.clock()
        self._unfinished = False
        for table, delete in self.rows.deletions(now):
            await self._attempt(self._delete(delete), table=table)
        deleted_before, last = now - self.user_retention, self._last_erased
        user_ids = await self.erasures.due(deleted_before, last, PAGE_SIZE)
        for user_id in user_ids:
            erasing = self.erasures.erase(user_id, now, deleted_before, self.budget)
            await self._attempt(erasing, user_id=user_id)
        is_full = len(user_ids) == PAGE_SIZE
        self._last_erased = user_ids[-1] if is_full else 0
        self._unfinished |= is_full

    async def _delete(self, delete: Deletion) -> bool:
        """Delete batches until none remains or the budget is spent."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.budget.total_seconds()
        while await delete():
            if loop.time() >= deadline:
                return False
        return True

    async def _attempt(self, work: Awaitable[bool], **subject: object) -> None:
        try:
            if not await work:
                self._unfinished = True
        except StoreUnavailable as error:
            cause = repr(error.__cause__)
            log.warning("retention interrupted", cause=cause, **subject)
        except Exception:
            log.exception("retention failed", **subject)
