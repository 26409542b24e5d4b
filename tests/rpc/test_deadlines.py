"""Deadlines of calls, kept by one timer."""

import math
from time import monotonic

import pytest

from server.rpc.deadlines import Deadline


class FakeTimer:
    """Holds the deadlines that are running."""

    def __init__(self) -> None:
        self.running: set[Deadline] = set()

    def add(self, entry: Deadline) -> None:
        self.running.add(entry)

    def remove(self, entry: Deadline) -> None:
        self.running.discard(entry)


@pytest.mark.parametrize(("seconds", "running"), [(60, 1), (math.inf, 0)])
async def test_timer_holds_a_deadline_while_its_block_runs(
    seconds: float, running: int
) -> None:
    """But not one that never comes: the timer reads all that it holds."""
    timer = FakeTimer()
    with Deadline(timer, monotonic() + seconds):
        assert len(timer.running) == running
    assert not timer.running
