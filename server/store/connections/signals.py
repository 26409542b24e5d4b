"""What a process asks Postgres at each poll: whether there is anything to read.

One statement replaces one for each poller: an idle process sends a fifth as many. Who
needs more than its answer then reads by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from server.domain.clock import Clock
from server.store.connections.connect import Database
from server.store.pool.statement import Statement

# All values are of one snapshot. Each part reads the end of an index, or few rows.
_SIGNALS = """
    select
        {oldest_open} as oldest_open,
        {not_begun} as not_begun,
        (select coalesce(max(id), 0) from outbox) as newest_id,
        exists (
            select from revocations
            where written_by >= :revoked_since and ended_at >= :revoked_after
        ) as has_revocations,
        array(
            select id from service_keys where revoked_at is null order by id
        ) as service_key_ids,
        exists (
            select from outbox where state = 0 and next_attempt_at <= now()
        ) as has_due_entries,
        exists (select from user_analytics where stale) or exists (
            select from notifications join user_settings using (user_id)
            where told_at is null and notifications.created_at < :digest_before
        ) as has_due_jobs
"""


@dataclass(frozen=True, slots=True)
class Signals:
    """One answer: transactions, the greatest outbox id, and what there is to read.

    `read_at` is a time of the event loop, before which nothing is missing.
    """

    read_at: float

    oldest_open: int
    not_begun: int
    newest_id: int
    has_revocations: bool
    service_key_ids: Sequence[int]
    has_due_entries: bool
    has_due_jobs: bool


class RevocationReader(Protocol):
    """Reads revocations, if there are any since the last time."""

    @property
    def position(self) -> tuple[int, datetime]:
        """Return the first transaction and the oldest end of a session to read."""

    async def follow(self, signals: Signals) -> None:
        """Read what is new. Raises StoreUnavailable."""


Follow = Callable[[Signals], Awaitable[None]]


class SignalReader:
    """Reads the signals, and calls or wakes up those who wait for them."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        revocations: RevocationReader,
        digest_after: timedelta,
        *readers: Follow,
    ) -> None:
        self._database = database
        self._clock = clock
        self._revocations = revocations
        self._digest_after = digest_after
        self._readers = (revocations.follow, *readers)
        settled = database.settled_changes
        self._advance = settled.advance
        self._statement = Statement(
            _SIGNALS.format(
                oldest_open=settled.oldest_open, not_begun=settled.not_begun
            )
        )
        self.entries_due = asyncio.Event()
        self.jobs_due = asyncio.Event()

    async def refresh(self) -> None:
        """Read the signals; every reader then reads what it needs.

        The failure of one does not keep the others from reading. Raises the first one.
        """
        if self._advance:
            await self._database.run(self._advance)
        read_at = asyncio.get_running_loop().time()
        revoked_since, revoked_after = self._revocations.position
        (row,) = await self._database.run(
            self._statement,
            revoked_since=revoked_since,
            revoked_after=revoked_after,
            digest_before=self._clock() - self._digest_after,
        )
        signals = Signals(read_at=read_at, **row)
        if signals.has_due_entries:
            self.entries_due.set()
        if signals.has_due_jobs:
            self.jobs_due.set()
        failures = []
        for follow in self._readers:
            try:
                await follow(signals)
            except Exception as error:  # raised below
                failures.append(error)
        if failures:
            raise failures[0]
