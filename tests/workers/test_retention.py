"""A sweep of retention does a bounded amount of work."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from server.workers.retention import (
    CONTINUE_AFTER,
    PAGE_SIZE,
    SWEEP_INTERVAL,
    Retention,
)
from tests.fakes import Clock


@dataclass
class FakeRows:
    """Tables with any number of batches of expired rows."""

    batches: dict[str, int]

    def deletions(self, _: datetime) -> Any:
        def deletion(table: str) -> Any:
            async def delete() -> bool:
                self.batches[table] -= 1
                return self.batches[table] > 0

            return delete

        return [(table, deletion(table)) for table in self.batches]


@dataclass
class FakeErasures:
    """Accounts to erase; those in `slow` stay."""

    due_ids: set[int]
    slow: set[int] = field(default_factory=set)
    attempts: list[int] = field(default_factory=list)

    async def due(self, _: datetime, after: int, size: int) -> Sequence[int]:
        return sorted(user_id for user_id in self.due_ids if user_id > after)[:size]

    async def erase(self, user_id: int, *_: object) -> bool:
        self.attempts.append(user_id)
        if user_id in self.slow:
            return False
        self.due_ids.remove(user_id)
        return True


def retention(
    batches: dict[str, int], erasures: FakeErasures, budget: timedelta
) -> Retention:
    rows = FakeRows(batches)
    return Retention(rows, erasures, timedelta(days=30), Clock(), budget)


async def test_sweep_ends_a_deletion_whose_time_is_spent() -> None:
    """Each table has its share: one with many expired rows does not delay others."""
    batches = {"audit_events": 1_000_000, "sessions": 1}
    sweeping = retention(batches, FakeErasures(set()), timedelta(0))
    await sweeping.sweep()
    assert batches == {"audit_events": 999_999, "sessions": 0}
    assert sweeping.interval() == CONTINUE_AFTER


async def test_sweep_erases_one_page_of_accounts() -> None:
    """Expired rows do not wait for a million erasures; the next sweep goes on."""
    erasures = FakeErasures(set(range(1, 2 * PAGE_SIZE + 2)))
    sweeping = retention({}, erasures, timedelta(minutes=1))
    for sweeps in (1, 2):
        await sweeping.sweep()
        assert len(erasures.attempts) == sweeps * PAGE_SIZE
        assert sweeping.interval() == CONTINUE_AFTER
    await sweeping.sweep()
    assert not erasures.due_ids
    assert sweeping.interval() == SWEEP_INTERVAL


async def test_slow_erasures_do_not_keep_others_from_their_turn() -> None:
    """A page of accounts that take long is passed, and continued later."""
    slow = set(range(1, PAGE_SIZE + 1))
    erasures = FakeErasures(slow | {PAGE_SIZE + 1}, slow)
    sweeping = retention({}, erasures, timedelta(minutes=1))
    for _ in range(3):
        await sweeping.sweep()
    assert erasures.due_ids == slow
    assert erasures.attempts.count(1) == 2
