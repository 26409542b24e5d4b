"""OutboxDispatcher: at least once; a failing entry does not delay the others."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest

from server.domain.errors import StoreUnavailable
from server.domain.outbox.emails import MailerUnavailable
from server.domain.outbox.entries import Entry
from server.workers.outbox_dispatcher import (
    BATCH_SIZE,
    FIRST_RETRY_DELAY,
    MAX_ATTEMPTS,
    MAX_MAILER_DELAY,
    MAX_RETRY_DELAY,
    OutboxDispatcher,
    retry_delay,
)
from tests.fakes import NOON, Clock


@dataclass(slots=True)
class FakeOutbox:
    """Entries in memory: those due, and the outcome of the others."""

    due: list[Entry] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    later: dict[int, timedelta] = field(default_factory=dict)
    dead: dict[int, str] = field(default_factory=dict)
    outages: int = 0
    _claimed: dict[int, Entry] = field(default_factory=dict)

    async def claim(
        self, size: int, lease: timedelta, *, mails: bool
    ) -> Sequence[Entry]:
        due = [e for e in self.due if mails or not e.is_mail][:size]
        self.due = [e for e in self.due if e not in due]
        claimed = [replace(e, attempts=e.attempts + 1) for e in due]
        self._claimed |= {e.id: e for e in claimed}
        return claimed

    async def renew(self, ids: Sequence[int], lease: timedelta) -> None:
        """No other process claims entries."""

    async def release(self, ids: Sequence[int]) -> None:
        released = [self._claimed.pop(entry_id) for entry_id in ids]
        self.due += [replace(e, attempts=e.attempts - 1) for e in released]

    async def delivered(self, entry_id: int, now: datetime) -> None:
        if self.outages:
            self.outages -= 1
            raise StoreUnavailable
        self.done.append(entry_id)

    async def drop(self, entry_id: int) -> None:
        self.dropped.append(entry_id)

    async def retry(self, entry_id: int, delay: timedelta, cause: str) -> None:
        self.later[entry_id] = delay
        self.due.append(self._claimed.pop(entry_id))

    async def dead_letter(self, entry_id: int, now: datetime, cause: str) -> None:
        self.dead[entry_id] = cause


@dataclass(slots=True)
class DispatcherHarness:
    """A dispatcher and its route, which raises `errors` by entry id."""

    clock: Clock = field(default_factory=Clock)
    store: FakeOutbox = field(default_factory=FakeOutbox)
    errors: dict[int, Exception] = field(default_factory=dict)
    delivered: list[int] = field(default_factory=list)
    empty: set[int] = field(default_factory=set)
    blocked: asyncio.Event | None = None
    dispatcher: OutboxDispatcher = field(init=False)

    def __post_init__(self) -> None:
        self.dispatcher = OutboxDispatcher(
            self.store, self._route, self.clock, lambda: 1.0, timedelta(0)
        )

    async def _route(self, entry: Entry) -> bool:
        if self.blocked:
            await self.blocked.wait()
        if error := self.errors.get(entry.id):
            raise error
        self.delivered.append(entry.id)
        return entry.id not in self.empty

    def mails(self, *ids: int) -> None:
        self.store.due += [entry(i, "mail.welcome") for i in ids]


def entry(number: int, kind: str) -> Entry:
    return Entry(number, kind, 1, None, {}, NOON, 0)


async def test_dispatcher_delivers_due_entries_in_order() -> None:
    """An entry for which there is nothing to deliver is deleted."""
    harness = DispatcherHarness(empty={2})
    harness.mails(1, 2, 3)
    assert await harness.dispatcher.deliver() == 3
    assert (harness.store.done, harness.store.dropped) == ([1, 3], [2])
    assert await harness.dispatcher.deliver() == 0


async def test_dispatcher_retries_failed_entry_and_delivers_others() -> None:
    harness = DispatcherHarness(errors={1: ValueError("550")})
    harness.mails(1, 2)
    await harness.dispatcher.deliver()
    assert harness.store.done == [2]
    assert harness.store.later == {1: FIRST_RETRY_DELAY}


async def test_dispatcher_makes_dead_letter_after_max_attempts() -> None:
    """With the class of its last error; the delays grow to the maximum."""
    harness = DispatcherHarness(errors={1: ValueError("550")})
    harness.mails(1)
    delays = []
    for _ in range(MAX_ATTEMPTS):
        await harness.dispatcher.deliver()
        delays.append(harness.store.later[1])
    assert harness.store.dead == {1: "ValueError"}
    assert not harness.store.due
    assert delays == sorted(delays)
    assert delays[-1] == MAX_RETRY_DELAY


async def test_dispatcher_counts_no_attempt_while_mailer_is_unavailable() -> None:
    """All e-mails wait together; events are still delivered."""
    harness = DispatcherHarness(
        errors={1: MailerUnavailable("x"), 2: MailerUnavailable("x")}
    )
    harness.mails(1, 2)
    harness.store.due.append(entry(3, "user.created"))
    for _ in range(100):
        await harness.dispatcher.deliver()
        harness.clock.advance(MAX_MAILER_DELAY.total_seconds())
    assert harness.store.done == [3]
    assert [e.attempts for e in harness.store.due] == [0, 0]
    harness.errors.clear()
    await harness.dispatcher.deliver()
    assert harness.store.done == [3, 1, 2]


async def test_dispatcher_waits_before_it_tries_the_mailer_again() -> None:
    harness = DispatcherHarness(errors={1: MailerUnavailable("x")})
    harness.mails(1)
    await harness.dispatcher.deliver()
    harness.errors.clear()
    await harness.dispatcher.deliver()
    assert not harness.delivered
    harness.clock.advance(FIRST_RETRY_DELAY.total_seconds())
    await harness.dispatcher.deliver()
    assert harness.delivered == [1]


async def test_dispatcher_records_delivery_after_store_outage() -> None:
    """Otherwise it would be delivered twice."""
    harness = DispatcherHarness()
    harness.store.outages = 3
    harness.mails(1)
    await harness.dispatcher.deliver()
    assert (harness.delivered, harness.store.done) == ([1], [1])


async def test_dispatcher_drain_finishes_delivery_and_releases_rest() -> None:
    """The released entries are due for other processes at once."""
    harness = DispatcherHarness(blocked=asyncio.Event())
    assert harness.blocked
    harness.mails(1, 2)
    async with asyncio.timeout(10):
        delivering = asyncio.create_task(harness.dispatcher.deliver())
        while not harness.store._claimed:  # noqa: ASYNC110 - the fake sets no event
            await asyncio.sleep(0)
        draining = asyncio.create_task(harness.dispatcher.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        harness.blocked.set()
        await asyncio.gather(delivering, draining)
    assert harness.store.done == [1]
    assert [(e.id, e.attempts) for e in harness.store.due] == [(2, 0)]
    assert await harness.dispatcher.deliver() == 0
    assert [e.id for e in harness.store.due] == [2]


async def test_dispatcher_polls_at_once_while_batches_are_full() -> None:
    harness = DispatcherHarness()
    harness.mails(*range(1, BATCH_SIZE + 2))
    assert harness.dispatcher.interval()
    await harness.dispatcher.deliver()
    assert not harness.dispatcher.interval()
    await harness.dispatcher.deliver()
    assert harness.dispatcher.interval()


@pytest.mark.parametrize(
    ("failures", "jitter", "seconds"),
    [(1, 1.0, 1), (1, 0.0, 0.5), (4, 1.0, 8), (12, 1.0, 2048), (10_000, 1.0, 3600)],
)
def test_retry_delay_doubles(failures: int, jitter: float, seconds: float) -> None:
    """Up to the maximum; jitter takes at most half."""
    delay = retry_delay(failures, MAX_RETRY_DELAY, jitter)
    assert delay == timedelta(seconds=seconds)
