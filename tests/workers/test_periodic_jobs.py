"""A turn of the periodic jobs does a bounded amount of work."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from server.workers.periodic_jobs import (
    BATCH_SIZE,
    INTERVAL,
    MAX_BATCHES,
    MAX_DIGESTS,
    PeriodicJobs,
)
from tests.fakes import Clock


@dataclass
class FakeMembers:
    """Stale members, and members with a digest that is due."""

    stale: int = 0
    digests: int = 0
    turns: int = 0

    async def count(self, size: int, _: datetime) -> int:
        self.turns += 1
        counted = min(size, self.stale)
        self.stale -= counted
        return counted

    async def digest(self, _before: datetime, _now: datetime) -> bool:
        self.digests -= 1
        return self.digests >= 0


async def test_turn_recounts_a_bounded_number_of_members() -> None:
    """After an import all members are stale; digests do not wait for all of them."""
    members = FakeMembers(stale=1_000_000, digests=1)
    jobs = PeriodicJobs(members, members, Clock())
    await jobs.run_once()
    assert members.stale == 1_000_000 - MAX_BATCHES * BATCH_SIZE
    assert members.digests < 1
    assert jobs.interval() == timedelta(0)


async def test_turn_sends_a_bounded_number_of_digests() -> None:
    members = FakeMembers(digests=1_000_000)
    jobs = PeriodicJobs(members, members, Clock())
    await jobs.run_once()
    assert members.digests == 1_000_000 - MAX_DIGESTS
    assert jobs.interval() == timedelta(0)


async def test_turn_without_work_left_is_followed_by_a_pause() -> None:
    members = FakeMembers(stale=BATCH_SIZE + 1, digests=1)
    jobs = PeriodicJobs(members, members, Clock())
    await jobs.run_once()
    assert members.turns == 2
    assert jobs.interval() == INTERVAL
