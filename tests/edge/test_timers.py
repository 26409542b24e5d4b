"""The timer that many entries share."""

import asyncio
from time import monotonic

from edge.timers import SharedTimer

INTERVAL = 0.01  # seconds


class RecordingEntry:
    """Notes when it expires."""

    def __init__(self, seconds: float) -> None:
        self.due = monotonic() + seconds
        self.expired: list[float] = []

    def expire(self) -> None:
        self.expired.append(monotonic())


async def test_entries_expire_once_when_they_are_due() -> None:
    """Not before, and not much later; an entry that is removed never does."""
    timer = SharedTimer(INTERVAL)
    entries = [RecordingEntry(seconds) for seconds in (0, 0.05, 0.05, 60)]
    for entry in entries:
        timer.add(entry)
    timer.remove(entries[2])
    await asyncio.sleep(0.3)
    assert [len(entry.expired) for entry in entries] == [1, 1, 0, 0]
    for entry in entries[:2]:
        assert entry.expired[0] - entry.due >= 0
        timer.remove(entry)  # is no error afterwards


def test_timer_works_in_one_loop_after_another() -> None:
    """Tests and commands run several loops in one process."""
    timer = SharedTimer(INTERVAL)

    async def run() -> int:
        entry = RecordingEntry(0)
        timer.add(entry)
        await asyncio.sleep(0.1)
        return len(entry.expired)

    assert [asyncio.run(run()) for _ in range(3)] == [1, 1, 1]


async def test_idle_timer_schedules_nothing() -> None:
    """Its callback runs only while there are entries."""
    timer = SharedTimer(INTERVAL)
    entry = RecordingEntry(60)
    timer.add(entry)
    timer.remove(entry)
    await asyncio.sleep(0.1)
    assert timer._loop is None  # what nothing else shows
