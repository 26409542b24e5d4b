"""Delivering: at least once, with patience, one entry's trouble none of another's."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest

from server.domain.errors import StoreUnavailable
from server.domain.outbox.dispatcher import (
    FIRST_PAUSE,
    LONGEST_ABSENCE,
    LONGEST_PAUSE,
    MOST_ATTEMPTS,
    MailerUnavailable,
    OutboxDispatcher,
    pause_after,
)
from server.domain.outbox.entries import Entry
from server.workers.supervisor import supervise
from tests.fakes import NOON, Clock


@dataclass(slots=True)
class FakeOutbox:
    """Entries in memory: those due, and what became of the others."""

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
        found = [e for e in self.due if mails or not e.is_mail][:size]
        self.due = [e for e in self.due if e not in found]
        tried = [replace(e, attempts=e.attempts + 1) for e in found]
        self._claimed |= {e.id: e for e in tried}
        return tried

    async def renew(self, ids: Sequence[int], lease: timedelta) -> None:
        """Nobody else is there to take them."""

    async def release(self, ids: Sequence[int]) -> None:
        back = [self._claimed.pop(entry_id) for entry_id in ids]
        self.due += [replace(e, attempts=e.attempts - 1) for e in back]

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

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(0)


@dataclass(slots=True)
class World:
    """A courier, and who carries for it: raises what stands here, by entry."""

    clock: Clock = field(default_factory=Clock)
    store: FakeOutbox = field(default_factory=FakeOutbox)
    trouble: dict[int, Exception] = field(default_factory=dict)
    carried: list[int] = field(default_factory=list)
    nothing: set[int] = field(default_factory=set)
    held: asyncio.Event | None = None
    dispatcher: OutboxDispatcher = field(init=False)

    def __post_init__(self) -> None:
        self.dispatcher = OutboxDispatcher(
            self.store, self._route, self.clock, lambda: 1.0, 0
        )

    async def _route(self, entry: Entry) -> bool:
        if self.held:
            await self.held.wait()
        if error := self.trouble.get(entry.id):
            raise error
        self.carried.append(entry.id)
        return entry.id not in self.nothing

    def mails(self, *ids: int) -> None:
        self.store.due += [entry(i, "mail.welcome") for i in ids]


def entry(number: int, kind: str) -> Entry:
    return Entry(number, kind, 1, None, {}, NOON, 0)


async def test_what_is_due_is_delivered() -> None:
    """In order; what came to nothing is forgotten."""
    world = World(nothing={2})
    world.mails(1, 2, 3)
    assert await world.dispatcher.deliver() == 3
    assert (world.store.done, world.store.dropped) == ([1, 3], [2])
    assert await world.dispatcher.deliver() == 0


async def test_one_that_fails_waits_and_the_others_go_on() -> None:
    world = World(trouble={1: ValueError("550")})
    world.mails(1, 2)
    await world.dispatcher.deliver()
    assert world.store.done == [2]
    assert world.store.later == {1: FIRST_PAUSE}


async def test_after_many_attempts_it_is_dead() -> None:
    """With the class of its last error; the pauses grew to the longest."""
    world = World(trouble={1: ValueError("550")})
    world.mails(1)
    pauses = []
    for _ in range(MOST_ATTEMPTS):
        await world.dispatcher.deliver()
        pauses.append(world.store.later[1])
    assert world.store.dead == {1: "ValueError"}
    assert not world.store.due
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE


async def test_an_absent_server_is_no_fault_of_the_mails() -> None:
    """They wait together, uncounted, however long; events go on."""
    world = World(trouble={1: MailerUnavailable("x"), 2: MailerUnavailable("x")})
    world.mails(1, 2)
    world.store.due.append(entry(3, "user.created"))
    for _ in range(100):
        await world.dispatcher.deliver()
        world.clock.advance(LONGEST_ABSENCE.total_seconds())
    assert world.store.done == [3]
    assert [e.attempts for e in world.store.due] == [0, 0]
    world.trouble.clear()
    await world.dispatcher.deliver()
    assert world.store.done == [3, 1, 2]


async def test_an_absent_server_is_not_asked_at_every_look() -> None:
    world = World(trouble={1: MailerUnavailable("x")})
    world.mails(1)
    await world.dispatcher.deliver()
    world.trouble.clear()
    await world.dispatcher.deliver()
    assert not world.carried
    world.clock.advance(FIRST_PAUSE.total_seconds())
    await world.dispatcher.deliver()
    assert world.carried == [1]


async def test_what_is_delivered_is_noted_though_the_store_is_away() -> None:
    """Else it would be delivered twice."""
    world = World()
    world.store.outages = 3
    world.mails(1)
    await world.dispatcher.deliver()
    assert (world.carried, world.store.done) == ([1], [1])


async def test_at_the_end_what_is_on_its_way_arrives() -> None:
    """And the rest is given back for others at once."""
    world = World(held=asyncio.Event())
    world.mails(1, 2)
    async with asyncio.timeout(10), supervise(world.dispatcher.run):
        while not world.store._claimed:  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0)
        resting = asyncio.create_task(world.dispatcher.drain())
        await asyncio.sleep(0)
        assert world.held
        world.held.set()
        await resting
    assert world.store.done == [1]
    assert [(e.id, e.attempts) for e in world.store.due] == [(2, 0)]


@pytest.mark.parametrize(
    ("failures", "jitter", "seconds"),
    [(1, 1.0, 1), (1, 0.0, 0.5), (4, 1.0, 8), (12, 1.0, 2048), (10_000, 1.0, 3600)],
)
def test_pauses(failures: int, jitter: float, seconds: float) -> None:
    """They double, up to the longest; jitter takes at most half."""
    pause = pause_after(failures, LONGEST_PAUSE, jitter)
    assert pause == timedelta(seconds=seconds)
