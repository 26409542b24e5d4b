"""A histogram: how many durations fell into each bucket, and their sum."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from threading import Lock


class Histogram:
    """Counts durations in seconds. `bounds` are the upper bounds of the buckets."""

    __slots__ = ("_bounds", "buckets", "seconds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)  # the last is +Inf
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self.buckets[bisect_left(self._bounds, seconds)] += 1
        self.seconds += seconds


class ThreadSafeHistogram(Histogram):
    """A histogram that several threads may use."""

    __slots__ = ("_lock",)

    def __init__(self, bounds: Sequence[float]) -> None:
        super().__init__(bounds)
        self._lock = Lock()

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        with self._lock:
            super().observe(seconds)
