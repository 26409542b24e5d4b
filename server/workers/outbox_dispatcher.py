"""OutboxDispatcher: delivers outbox entries concurrently, each at least once.

An entry whose delivery fails is retried after 1 s, 2 s, 4 s and so on; after
`MAX_ATTEMPTS` it becomes a dead letter. While the mail server is unavailable no
attempt is counted: all e-mails wait together, and events are still delivered.

Each queue has its own places, so that no queue waits for another. Entries of one
account are delivered one after the other, in their order.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from server.domain.clock import Clock
from server.domain.errors import StoreUnavailable
from server.domain.outbox.emails import MailerBusy, MailerUnavailable
from server.domain.outbox.entries import Entry, Queue
from server.workers.batcher import Batcher

log = structlog.get_logger()
# Deliveries at a time. Events use a connection to Postgres each.
MAX_DELIVERIES = {
    Queue.EVENTS: 4,
    Queue.ACCOUNT_MAILS: 16,
    Queue.NOTIFICATION_MAILS: 64,
}
# Statements that record deliveries at a time: a crash repeats what is not recorded, so
# that a delivery should not wait for the statement before it.
MAX_RECORDING = 3
MAX_ATTEMPTS = 15
LEASE_DURATION = timedelta(seconds=5)
RENEW_INTERVAL_SECONDS = 1.5
DELIVERY_TIMEOUT_SECONDS = 60.0
DRAIN_TIMEOUT_SECONDS = 5.0
POLL_INTERVAL = timedelta(seconds=30)  # unless it is woken up for due entries
FIRST_RETRY_DELAY = timedelta(seconds=1)
MAX_RETRY_DELAY = timedelta(hours=1)
MAX_MAILER_DELAY = timedelta(seconds=30)
BUSY_DELAY = timedelta(seconds=5)
# From the time of a retry to its result: the poll and the mailer's own timeout. Later
# than that, another process has delivered the mails, or there are none.
MAX_RETRY_DURATION = timedelta(seconds=25)
MAIL_OUTCOMES = ("delivered", "dropped", "retried", "dead", "unavailable")

# Returns whether there was anything to deliver. Raises MailerUnavailable, MailerBusy;
# any other exception but StoreUnavailable counts as a failed attempt.
Route = Callable[[Entry], Awaitable[bool]]
Jitter = Callable[[], float]


class OutboxStore(Protocol):
    """Stores entries. Delays are measured by its clock, which all processes share."""

    async def claim(
        self, sizes: Mapping[Queue, int], lease: timedelta
    ) -> Sequence[Entry]:
        """Claim entries that are due, up to a number from each queue, in id order.

        No other process gets them during the lease.
        """

    async def renew(self, ids: Sequence[int], lease: timedelta) -> None:
        """Extend the lease of claimed entries."""

    async def release(self, ids: Sequence[int]) -> None:
        """Release claimed entries, without counting the attempt."""

    async def postpone(self, ids: Sequence[int], delay: timedelta) -> None:
        """Release claimed entries, which become due again after the delay."""

    async def delivered(self, ids: Sequence[int], now: datetime) -> None:
        """Mark entries as delivered; the recipients of e-mails are deleted."""

    async def drop(self, ids: Sequence[int]) -> None:
        """Delete entries for which there was nothing to deliver."""

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
        wake: asyncio.Event | None = None,
    ) -> None:
        """Count mails by outcome in `mails`; set `wake` when more can be claimed."""
        self._store = store
        self._route = route
        self._clock = clock
        self._jitter = jitter
        self._record_retry_delay = record_retry_delay
        self._mails: Counter[str] = Counter() if mails is None else mails
        self._mails.update(dict.fromkeys(MAIL_OUTCOMES, 0))
        self._wake = wake or asyncio.Event()
        self._mailer_failures = 0
        self._mailer_retry_at: datetime | None = None
        self._draining = False
        self._claiming = asyncio.Lock()
        self._deliveries: dict[asyncio.Task[None], Entry] = {}
        self._last: dict[object, asyncio.Task[None]] = {}  # by order key
        self._more: set[Queue] = set()  # had more entries than free places
        self._renewing: asyncio.Task[None] | None = None
        # What ends while statements run is recorded by the next one, together.
        self._record_delivered = Batcher[int, None](
            lambda ids: store.delivered(ids, clock()), MAX_RECORDING
        )
        self._record_dropped = Batcher[int, None](store.drop)
        self._release = Batcher[int, None](store.release)
        self._postpone = Batcher[int, None](lambda ids: store.postpone(ids, BUSY_DELAY))
        self._record_failures = asyncio.Lock()  # one connection, however many fail

    @property
    def mailer_is_degraded(self) -> bool:
        """Whether the last use of the mail server failed."""
        retry_at = self._mailer_retry_at
        return retry_at is not None and self._clock() < retry_at + MAX_RETRY_DURATION

    async def deliver(self) -> int:
        """Claim what is due and begin to deliver it; return the number of entries.

        Raises StoreUnavailable; the lease of claimed entries then expires.
        """
        async with self._claiming:
            sizes = self._free_places()
            if self._draining or not sizes:
                return 0
            entries = await self._store.claim(sizes, LEASE_DURATION)
            claimed = Counter(entry.queue for entry in entries)
            self._more -= sizes.keys()
            self._more |= {queue for queue in sizes if claimed[queue] == sizes[queue]}
            for entry in entries:
                self._begin(entry)
        if entries and self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())
        return len(entries)

    async def finish(self) -> None:
        """Wait until no delivery is in progress."""
        while self._deliveries:
            await asyncio.wait(self._deliveries)

    async def drain(self) -> None:
        """Finish the deliveries in progress and begin no other."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT_SECONDS), self._claiming:
                await self.finish()
        for task in self._deliveries:
            task.cancel()
        await self.finish()
        if self._renewing:
            self._renewing.cancel()

    def _free_places(self) -> dict[Queue, int]:
        """Return the number of entries to claim, by queue, if there are any."""
        used = Counter(entry.queue for entry in self._deliveries.values())
        return {
            queue: free
            for queue, maximum in MAX_DELIVERIES.items()
            if (free := maximum - used[queue])
            and (queue is Queue.EVENTS or not self._mailer_is_unavailable())
        }

    def _begin(self, entry: Entry) -> None:
        previous = self._last.get(entry.order_key)
        task = asyncio.create_task(self._deliver_after(previous, entry))
        self._deliveries[task] = entry
        if entry.order_key is not None:
            self._last[entry.order_key] = task
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        entry = self._deliveries.pop(task)
        if self._last.get(entry.order_key) is task:
            del self._last[entry.order_key]
        # Half of the places are claimed together.
        free = self._free_places().get(entry.queue, 0)
        if entry.queue in self._more and free >= MAX_DELIVERIES[entry.queue] / 2:
            self._wake.set()

    async def _deliver_after(
        self, previous: asyncio.Task[None] | None, entry: Entry
    ) -> None:
        if previous:
            await asyncio.wait([previous])
        try:
            if self._must_skip(entry):
                await self._release.get(entry.id)
            else:
                await self._deliver(entry)
        except StoreUnavailable as error:  # the lease expires
            cause = repr(error.__cause__)
            log.warning("delivery interrupted", entry=entry.id, cause=cause)

    def _must_skip(self, entry: Entry) -> bool:
        return self._draining or (entry.is_mail and self._mailer_is_unavailable())

    async def _deliver(self, entry: Entry) -> None:
        try:
            async with asyncio.timeout(DELIVERY_TIMEOUT_SECONDS):
                delivered = await self._route(entry)
        except MailerUnavailable as error:
            self._mails["unavailable"] += 1
            self._delay_mails(error)
            await self._release.get(entry.id)
        except MailerBusy:
            await self._postpone.get(entry.id)
        except StoreUnavailable:
            raise
        except Exception as error:
            async with self._record_failures:
                await self._record_failure(entry, error)
        else:
            if entry.is_mail:
                self._mails["delivered" if delivered else "dropped"] += 1
                self._mailer_failures, self._mailer_retry_at = 0, None
            await self._record_delivery(entry.id, delivered)

    async def _record_delivery(self, entry_id: int, delivered: bool) -> None:
        """Retry until it is recorded: an unrecorded delivery is repeated."""
        record = self._record_delivered if delivered else self._record_dropped
        while True:
            try:
                await record.get(entry_id)
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
        """Let all e-mails wait; those that fail together count as one failure."""
        if self._mailer_is_unavailable():
            return
        self._mailer_failures += 1
        delay = retry_delay(self._mailer_failures, MAX_MAILER_DELAY, self._jitter())
        self._mailer_retry_at = self._clock() + delay
        log.warning("mail server unavailable", cause=str(error))

    async def _renew(self) -> None:
        """Renew leases; short ones let another process take over after a crash."""
        while self._deliveries:
            await asyncio.sleep(RENEW_INTERVAL_SECONDS)
            if ids := [entry.id for entry in self._deliveries.values()]:
                with suppress(StoreUnavailable):
                    await self._store.renew(ids, LEASE_DURATION)
        self._renewing = None
