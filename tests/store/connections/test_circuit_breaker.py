"""The circuit breaker's states, on a clock of the test's own."""

import pytest

from server.domain.errors import StoreUnavailable
from server.store.connections.circuit_breaker import (
    PROBE_INTERVAL_SECONDS,
    CircuitBreaker,
)


class MonotonicClock:
    """A clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_open_breaker_admits_one_probe_per_interval() -> None:
    clock = MonotonicClock()
    breaker = CircuitBreaker(clock)
    assert breaker.admit() is False
    breaker.record_failure()
    with pytest.raises(StoreUnavailable):
        breaker.admit()
    clock.now += PROBE_INTERVAL_SECONDS
    assert breaker.admit() is True
    with pytest.raises(StoreUnavailable):
        breaker.admit()
    clock.now += PROBE_INTERVAL_SECONDS  # a probe that never ended blocks nothing
    assert breaker.admit() is True


def test_success_closes_breaker() -> None:
    breaker = CircuitBreaker(MonotonicClock())
    breaker.record_failure()
    assert breaker.is_open
    breaker.record_success()
    assert not breaker.is_open
    assert breaker.admit() is False
