"""Time two functions alternately in this process; needs no service."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Work = Callable[[], object]
ROUNDS = 15
SECONDS = 0.1  # of each half round
WARM_UP = 200


@dataclass(frozen=True, slots=True)
class Race:
    """Medians over the rounds; a ratio of 2 means that ours takes half the time."""

    bare_us: float
    ours_us: float
    ratio: float


def race(bare: Work, ours: Work, rounds: int = ROUNDS) -> Race:
    """Time both alternately, `rounds` times; return the medians of CPU time."""
    plans = [
        (work, max(1, int(SECONDS * 1e6 / _timed(work, WARM_UP))))
        for work in (bare, ours)
    ]
    pairs = [tuple(_timed(*plan) for plan in plans) for _ in range(rounds)]
    return Race(
        statistics.median(b for b, _ in pairs),
        statistics.median(o for _, o in pairs),
        statistics.median(b / o for b, o in pairs),
    )


def _timed(work: Work, times: int) -> float:
    """Return the microseconds of one call."""
    started = time.thread_time()
    for _ in range(times):
        work()
    return (time.thread_time() - started) / times * 1e6
