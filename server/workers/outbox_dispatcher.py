"""OutboxDispatcher: delivers outbox entries one after the other, at least once.

An entry whose delivery fails is retried after 1 s, 2 s, 4 s and so on; after
`MAX_ATTEMPTS` it becomes a dead letter. While the mail server is unavailable no
attempt is counted: all e-mails wait together, and events are still delivered.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from server.domain.clock import Clock
from server.domain.errors import StoreUnavailable
from server.domain.outbox.emails import MailerUnavailable
from server.domain.outbox.entries import Entry

log = structlog.get_logger()
BATCH_SIZE = 10
MAX_ATTEMPTS = 15
LEASE_DURATION = timedelta(seconds=5)
RENEW_INTERVAL_SECONDS = 1.5
DELIVERY_TIMEOUT_SECONDS = 60.0
DRAIN_TIMEOUT_SECONDS = 5.0
POLL_INTERVAL = timedelta(seconds=30)  # unless it is woken up for due entries
FIRST_RETRY_DELAY = timedelta(seconds=1)
MAX_RETRY_DELAY = timedelta(hours=1)
MAX_MAILER_DELAY = timedelta(seconds=30)
# From the time of a retry to its result: the poll and the mailer's own timeout. Later
# than that, another process has delivered the mails, or there are none.
MAX_RETRY_DURATION = timedelta(seconds=25)
MAIL_OUTCOMES = ("delivered", "dropped", "retried", "dead", "unavailable")

# Returns whether there was anything to deliver. Raises MailerUnavailable; any other
# exception but StoreUnavailable counts as a failed attempt.
Route = Callable[[Entry], Awaitable[bool]]
Jitter = Callable[[], float]


class OutboxStore(Protocol):
    """Stores entries. Delays are measured by its clock, which all processes share."""

    async def claim(
        self, size: int, lease: timedelta, *, mails: bool
    ) -> Sequence[Entry]:
        """Claim entries that are due; no other process gets them during the lease."""

    async def renew(self, ids: Sequence[int], lease: timedelta) -> None:
        """Extend the lease of claimed entries."""

    async def release(self, ids: Sequence[int]) -> None:
        """Release claimed entries, without counting the attempt."""

    async def delivered(self, entry_id: int, now: datetime) -> None:
        """Mark an entry as delivered; the recipient of an e-mail is deleted."""

    async def drop(self, entry_id: int) -> None:
        """Delete an entry for which there was nothing to deliver."""

    async def retry(self, entry_id: int, delay: timedelta, cause: str) -> None:
        """Make an entry due again after the delay."""

    async def dead_letter(self, entry_id: int, now: datetime, cause: str) -> None:
        """Keep an entry for an operator; it is not retried by itself."""


def retry_delay(failures: int, maximum: timedelta, jitter: float) -> timedelta:
    """Return the delay after so many failures; `jitter` is from 0 to 1."""
    doubled: timedelta = FIRST_RETRY_DELAY * 2 ** min(failures - 1, 20)
    return min(doubled, maximum) * (0.5 + jitter / 2)


class OutboxDispatcher:
    """Claims entries and delivers them by a route."""

    def __init__(
        self,
        store: OutboxStore,
        route: Route,
        clock: Clock,
        jitter: Jitter,
        record_retry_delay: timedelta = timedelta(seconds=1),
        mails: Counter[str] | None = None,
    ) -> None:
        """Count mails by outcome in `mails`."""
        self._store = store
        self._route = route
        self._clock = clock
        self._jitter = jitter
        self._record_retry_delay = record_retry_delay
        self._mails: Counter[str] = Counter() if mails is None else mails
        self._mails.update(dict.fromkeys(MAIL_OUTCOMES, 0))
        self._mailer_failures = 0
        self._mailer_retry_at: datetime | None = None
        self._last_batch = 0
        self._draining = False
        self._busy = asyncio.Lock()

    @property
    def mailer_is_degraded(self) -> bool:
        """Whether the last use of the mail server failed."""
        retry_at = self._mailer_retry_at
        return retry_at is not None and self._clock() < retry_at + MAX_RETRY_DURATION

    def interval(self) -> timedelta:
        """Return the time until the next poll: none while batches are full."""
        more = self._last_batch == BATCH_SIZE and not self._draining
        return timedelta(0) if more else POLL_INTERVAL

    async def deliver(self) -> int:
        """Deliver what is due, at most a batch; return the number of entries claimed.

        Raises StoreUnavailable; the lease of claimed entries then expires.
        """
        async with self._busy:
            self._last_batch = 0
            if self._draining:
                return 0
            mails = not self._mailer_is_unavailable()
            entries = await self._store.claim(BATCH_SIZE, LEASE_DURATION, mails=mails)
            pending = [entry.id for entry in entries]
            async with self._renewed(pending):
                for entry in entries:
                    if self._must_skip(entry):
                        continue
                    await self._deliver(entry)
                    pending.remove(entry.id)
            if pending:
                await self._store.release(pending)
            self._last_batch = len(entries)
        return self._last_batch

    async def drain(self) -> None:
        """Finish the delivery in progress and begin no other."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT_SECONDS), self._busy:
                pass

    def _must_skip(self, entry: Entry) -> bool:
        return self._draining or (entry.is_mail and self._mailer_is_unavailable())

    async def _deliver(self, entry: Entry) -> None:
        try:
            async with asyncio.timeout(DELIVERY_TIMEOUT_SECONDS):
                delivered = await self._route(entry)
        except MailerUnavailable as error:
            self._mails["unavailable"] += 1
            self._delay_mails(error)
            await self._store.release([entry.id])
        except StoreUnavailable:
            raise
        except Exception as error:
            await self._record_failure(entry, error)
        else:
            if entry.is_mail:
                self._mails["delivered" if delivered else "dropped"] += 1
                self._mailer_failures, self._mailer_retry_at = 0, None
            await self._record_delivery(entry.id, delivered)

    async def _record_delivery(self, entry_id: int, delivered: bool) -> None:
        """Retry until it is recorded: an unrecorded delivery is repeated."""
        while True:
            try:
                if delivered:
                    await self._store.delivered(entry_id, self._clock())
                else:
                    await self._store.drop(entry_id)
            except StoreUnavailable as error:
                cause = repr(error.__cause__)
                log.warning("delivery not recorded", entry=entry_id, cause=cause)
                await asyncio.sleep(self._record_retry_delay.total_seconds())
            else:
                return

    async def _record_failure(self, entry: Entry, error: Exception) -> None:
        cause = type(error).__name__
        fields = {"kind": entry.kind, "entry": entry.id, "attempts": entry.attempts}
        dead = entry.attempts >= MAX_ATTEMPTS
        if entry.is_mail:
            self._mails["dead" if dead else "retried"] += 1
        if dead:
            log.error("dead letter: see academy outbox", cause=cause, **fields)
            await self._store.dead_letter(entry.id, self._clock(), cause)
            return
        log.warning("delivery failed", cause=cause, **fields)
        delay = retry_delay(entry.attempts, MAX_RETRY_DELAY, self._jitter())
        await self._store.retry(entry.id, delay, cause)

    def _mailer_is_unavailable(self) -> bool:
        retry_at = self._mailer_retry_at
        return retry_at is not None and retry_at > self._clock()

    def _delay_mails(self, error: MailerUnavailable) -> None:
        self._mailer_failures += 1
        delay = retry_delay(self._mailer_failures, MAX_MAILER_DELAY, self._jitter())
        self._mailer_retry_at = self._clock() + delay
        log.warning("mail server unavailable", cause=str(error))

    @asynccontextmanager
    async def _renewed(self, ids: Sequence[int]) -> AsyncIterator[None]:
        """Renew the lease; a short one lets another process take over after a crash."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(RENEW_INTERVAL_SECONDS)
                with suppress(StoreUnavailable):
                    await self._store.renew(ids, LEASE_DURATION)

        task = asyncio.create_task(renew())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
