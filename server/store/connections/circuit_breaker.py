"""A circuit breaker: while Postgres does not answer, callers are refused at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from server.domain.errors import StoreUnavailable

PROBE_INTERVAL_SECONDS = 0.5


class CircuitBreaker:
    """Opens after a failure; then lets one probe through per interval until one works.

    The states are those of https://martinfowler.com/bliki/CircuitBreaker.html.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_probe_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the last attempt failed."""
        return self._next_probe_at is not None

    def admit(self) -> bool:
        """Let a call through, while open as a probe; return whether it is one.

        Raises StoreUnavailable while open and no probe is due.
        """
        if self._next_probe_at is None:
            return False
        now = self._clock()
        if now < self._next_probe_at:
            raise StoreUnavailable
        self._next_probe_at = now + PROBE_INTERVAL_SECONDS
        return True

    def record_success(self) -> None:
        """Close: Postgres answers."""
        self._next_probe_at = None

    def record_failure(self) -> None:
        """Open, or stay open."""
        self._next_probe_at = self._clock() + PROBE_INTERVAL_SECONDS
