"""OutboxDispatcher: at least once; a failing entry does not delay the others."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest

from server.domain.errors import StoreUnavailable
from server.domain.outbox.emails import MailerBusy, MailerUnavailable
from server.domain.outbox.entries import Entry, Queue
from server.workers.outbox_dispatcher import (
    BUSY_DELAY,
    FIRST_RETRY_DELAY,
    MAX_ATTEMPTS,
    MAX_DELIVERIES,
    MAX_MAILER_DELAY,
    MAX_RECORDING,
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
    records: int = 0  # statements that recorded deliveries
    _claimed: dict[int, Entry] = field(default_factory=dict)

    async def claim(
        self, sizes: Mapping[Queue, int], lease: timedelta
    ) -> Sequence[Entry]:
        due = [
            entry
            for queue, size in sizes.items()
            for entry in [e for e in self.due if e.queue is queue][:size]
        ]
        self.due = [e for e in self.due if e not in due]
        claimed = [replace(e, attempts=e.attempts + 1) for e in due]
        self._claimed |= {e.id: e for e in claimed}
        return sorted(claimed, key=lambda e: e.id)

    async def renew(self, ids: Sequence[int], lease: timedelta) -> None:
        """No other process claims entries."""

    async def release(self, ids: Sequence[int]) -> None:
        released = [self._claimed.pop(entry_id) for entry_id in ids]
        self.due += [replace(e, attempts=e.attempts - 1) for e in released]

    async def postpone(self, ids: Sequence[int], delay: timedelta) -> None:
        self.later |= dict.fromkeys(ids, delay)

    async def delivered(self, ids: Sequence[int], now: datetime) -> None:
        if self.outages:
            self.outages -= 1
            raise StoreUnavailable
        self.done += ids
        self.records += 1

    async def drop(self, ids: Sequence[int]) -> None:
        self.dropped += ids

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
    in_progress: list[int] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    dispatcher: OutboxDispatcher = field(init=False)

    def __post_init__(self) -> None:
        self.dispatcher = OutboxDispatcher(
            self.store,
            self._route,
            self.clock,
            lambda: 1.0,
            timedelta(0),
            self.outcomes,
            self.wake,
        )

    async def _route(self, entry: Entry) -> bool:
        self.in_progress.append(entry.id)
        if self.blocked:
            await self.blocked.wait()
        self.in_progress.remove(entry.id)
        if error := self.errors.get(entry.id):
            raise error
        self.delivered.append(entry.id)
        return entry.id not in self.empty

    def mails(self, *ids: int) -> None:
        self.store.due += [entry(i, "mail.welcome") for i in ids]

    async def deliver(self) -> int:
        """Deliver what is due; return the number of entries."""
        claimed = await self.dispatcher.deliver()
        await self.dispatcher.finish()
        return claimed

    async def begin(self) -> None:
        """Begin to deliver what is due, until every delivery waits."""
        await self.dispatcher.deliver()
        for _ in range(10):
            await asyncio.sleep(0)


def entry(number: int, kind: str, user_id: int = 1) -> Entry:
    return Entry(number, kind, user_id, None, {}, NOON, 0)


async def test_dispatcher_delivers_due_entries_in_order() -> None:
    """An entry for which there is nothing to deliver is deleted."""
    harness = DispatcherHarness(empty={2})
    harness.mails(1, 2, 3)
    assert await harness.deliver() == 3
    assert (harness.store.done, harness.store.dropped) == ([1, 3], [2])
    assert await harness.deliver() == 0


async def test_dispatcher_retries_failed_entry_and_delivers_others() -> None:
    harness = DispatcherHarness(errors={1: ValueError("550")})
    harness.mails(1, 2)
    await harness.deliver()
    assert harness.store.done == [2]
    assert harness.store.later == {1: FIRST_RETRY_DELAY}


async def test_dispatcher_makes_dead_letter_after_max_attempts() -> None:
    """With the class of its last error; the delays grow to the maximum."""
    harness = DispatcherHarness(errors={1: ValueError("550")})
    harness.mails(1)
    delays = []
    for _ in range(MAX_ATTEMPTS):
        await harness.deliver()
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
        await harness.deliver()
        harness.clock.advance(MAX_MAILER_DELAY.total_seconds())
    assert harness.store.done == [3]
    assert [e.attempts for e in harness.store.due] == [0, 0]
    harness.errors.clear()
    await harness.deliver()
    assert harness.store.done == [3, 1, 2]


async def test_dispatcher_counts_each_attempt_to_deliver_a_mail_by_outcome() -> None:
    """Events are no mails; an outcome that has not occurred counts 0."""
    harness = DispatcherHarness(errors={3: ValueError("550")}, empty={2})
    harness.mails(1, 2, 3)
    harness.store.due.append(entry(4, "user.created"))
    await harness.deliver()
    counts = {"delivered": 1, "dropped": 1, "retried": 1, "dead": 0, "unavailable": 0}
    assert harness.outcomes == counts
    for _ in range(MAX_ATTEMPTS - 1):
        await harness.deliver()
    assert harness.outcomes["retried"] == MAX_ATTEMPTS - 1
    assert harness.outcomes["dead"] == 1
    harness.errors[5] = MailerUnavailable("x")
    harness.mails(5)
    await harness.deliver()
    assert harness.outcomes["unavailable"] == 1


async def test_dispatcher_waits_before_it_tries_the_mailer_again() -> None:
    harness = DispatcherHarness(errors={1: MailerUnavailable("x")})
    harness.mails(1)
    await harness.deliver()
    harness.errors.clear()
    await harness.deliver()
    assert not harness.delivered
    harness.clock.advance(FIRST_RETRY_DELAY.total_seconds())
    await harness.deliver()
    assert harness.delivered == [1]


async def test_mailer_is_degraded_from_failure_to_success() -> None:
    """Between two attempts, too: a scrape may come at any time."""
    harness = DispatcherHarness(errors={1: MailerUnavailable("x")})
    harness.mails(1)
    states = []
    for _ in range(100):
        await harness.deliver()
        harness.clock.advance(1)
        states.append(harness.dispatcher.mailer_is_degraded)
    assert all(states)
    harness.errors.clear()
    harness.clock.advance(MAX_MAILER_DELAY.total_seconds())
    await harness.deliver()
    assert not harness.dispatcher.mailer_is_degraded


async def test_mailer_is_not_degraded_once_others_have_delivered() -> None:
    """A process that has nothing to send does not know that the server answers."""
    harness = DispatcherHarness(errors={1: MailerUnavailable("x")})
    harness.mails(1)
    await harness.deliver()
    harness.store.due.clear()
    harness.clock.advance(60)
    await harness.deliver()
    assert not harness.dispatcher.mailer_is_degraded


async def test_dispatcher_records_delivery_after_store_outage() -> None:
    """Otherwise it would be delivered twice."""
    harness = DispatcherHarness()
    harness.store.outages = 3
    harness.mails(1)
    await harness.deliver()
    assert (harness.delivered, harness.store.done) == ([1], [1])


async def test_dispatcher_drain_finishes_delivery_and_releases_rest() -> None:
    """The released entries are due for other processes at once."""
    harness = DispatcherHarness(blocked=asyncio.Event())
    assert harness.blocked
    harness.mails(1, 2)
    async with asyncio.timeout(10):
        delivering = asyncio.create_task(harness.deliver())
        while not harness.store._claimed:  # noqa: ASYNC110 - the fake sets no event
            await asyncio.sleep(0)
        draining = asyncio.create_task(harness.dispatcher.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        harness.blocked.set()
        await asyncio.gather(delivering, draining)
    assert harness.store.done == [1]
    assert [(e.id, e.attempts) for e in harness.store.due] == [(2, 0)]
    assert await harness.deliver() == 0
    assert [e.id for e in harness.store.due] == [2]


async def test_dispatcher_polls_at_once_while_there_may_be_more() -> None:
    """When places are free again that were all taken."""
    places = MAX_DELIVERIES[Queue.ACCOUNT_MAILS]
    harness = DispatcherHarness()
    harness.mails(*range(places + 1))
    await harness.deliver()
    assert harness.wake.is_set()
    harness.wake.clear()
    assert await harness.deliver() == 1
    assert not harness.wake.is_set()


async def test_dispatcher_delivers_to_different_accounts_at_the_same_time() -> None:
    """Those of one account one after the other, in their order."""
    harness = DispatcherHarness(blocked=asyncio.Event())
    assert harness.blocked
    harness.store.due += [
        entry(number, "mail.welcome", user_id=number % 3) for number in range(9)
    ]
    await harness.begin()
    assert harness.in_progress == [0, 1, 2]
    harness.blocked.set()
    await harness.dispatcher.finish()
    assert harness.delivered == list(range(9))


async def test_dispatcher_does_not_order_notifications_of_one_account() -> None:
    harness = DispatcherHarness(blocked=asyncio.Event())
    assert harness.blocked
    harness.store.due += [entry(n, "mail.new_follower") for n in range(5)]
    await harness.begin()
    assert harness.in_progress == [0, 1, 2, 3, 4]
    harness.blocked.set()
    await harness.dispatcher.finish()


async def test_dispatcher_lets_no_queue_wait_for_another() -> None:
    """Each queue has its own places, however many entries another one has."""
    harness = DispatcherHarness(blocked=asyncio.Event())
    assert harness.blocked
    many = range(2 * MAX_DELIVERIES[Queue.NOTIFICATION_MAILS])
    harness.store.due += [entry(n, "mail.followed_post", n) for n in many]
    await harness.begin()
    assert len(harness.in_progress) == MAX_DELIVERIES[Queue.NOTIFICATION_MAILS]
    harness.store.due.append(entry(1_000, "mail.password_reset"))
    harness.store.due.append(entry(1_001, "post.spread"))
    await harness.begin()
    assert harness.in_progress[-2:] == [1_000, 1_001]
    harness.blocked.set()
    await harness.dispatcher.finish()


async def test_dispatcher_records_concurrent_deliveries_together() -> None:
    """The first by itself; those that end meanwhile by one statement."""
    harness = DispatcherHarness(blocked=asyncio.Event())
    assert harness.blocked
    harness.store.due += [entry(n, "mail.followed_post", n) for n in range(20)]
    await harness.begin()
    harness.blocked.set()
    await harness.dispatcher.finish()
    assert sorted(harness.store.done) == list(range(20))
    assert harness.store.records <= MAX_RECORDING + 1


async def test_dispatcher_postpones_mail_while_mailer_is_busy() -> None:
    """It is no failed attempt, and other e-mails are sent."""
    harness = DispatcherHarness(errors={1: MailerBusy()})
    harness.mails(1, 2)
    await harness.deliver()
    assert harness.store.done == [2]
    assert harness.store.later == {1: BUSY_DELAY}
    assert not harness.dispatcher.mailer_is_degraded
    assert harness.outcomes["retried"] == harness.outcomes["unavailable"] == 0


async def test_dispatcher_counts_one_outage_for_mails_that_fail_together() -> None:
    """The next attempt is not delayed as after so many outages."""
    harness = DispatcherHarness(errors={n: MailerUnavailable("x") for n in range(10)})
    harness.store.due += [entry(n, "mail.followed_post", n) for n in range(10)]
    await harness.deliver()
    harness.errors.clear()
    harness.clock.advance(FIRST_RETRY_DELAY.total_seconds())
    await harness.deliver()
    assert sorted(harness.store.done) == list(range(10))


@pytest.mark.parametrize(
    ("failures", "jitter", "seconds"),
    [(1, 1.0, 1), (1, 0.0, 0.5), (4, 1.0, 8), (12, 1.0, 2048), (10_000, 1.0, 3600)],
)
def test_retry_delay_doubles(failures: int, jitter: float, seconds: float) -> None:
    """Up to the maximum; jitter takes at most half."""
    delay = retry_delay(failures, MAX_RETRY_DELAY, jitter)
    assert delay == timedelta(seconds=seconds)
