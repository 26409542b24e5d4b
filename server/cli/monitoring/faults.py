"""Faults that the metrics of a running server show, one line for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.cli.monitoring.samples import Interval

# As the alert AcademyEventLoopBlocked: this late so many times, or on average by this.
BLOCKED_SECONDS = 0.25  # a bound of the histogram
MIN_BLOCKS = 3
MAX_MEAN_LAG_SECONDS = 0.02
_LAG = "academy_event_loop_lag_seconds"
SLOW_HASHING_SECONDS = 1.0  # a log-in usually takes less than 0.1 s


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: the component, what is wrong, and what to do."""

    component: str
    problem: str
    advice: str


# A fault, and the components that it affects: they have no fault of their own.
_CONSEQUENCES = {
    "postgres": {"database pool", "replica"},
    "hashing": {"event loop", "database pool"},
    "event loop": {"database pool"},
}


def faults(interval: Interval) -> list[Fault]:
    """Return the faults during the interval without their consequences."""
    detected = [fault for check in _CHECKS for fault in check(interval)]
    affected: set[str] = set()
    for fault in detected:
        affected |= _CONSEQUENCES.get(fault.component, set())
    return [fault for fault in detected if fault.component not in affected]


def _hashing_faults(interval: Interval) -> Iterator[Fault]:
    """Yield a fault if passwords are refused or wait too long."""
    refused = interval.increase("academy_hashing_refused_total")
    wait = interval.quantile(0.99, "academy_hashing_wait_seconds") or 0.0
    if not refused and wait < SLOW_HASHING_SECONDS:
        return
    queue = interval.gauge("academy_hashing_queue_length") or 0
    yield Fault(
        "hashing",
        f"overloaded: {refused:.0f} refused in {interval.seconds:.0f} s, "
        f"{queue:.0f} waiting, p99 wait {wait:.1f} s",
        "look for an unusual number of log-ins, then add processes or cores",
    )


def _event_loop_faults(interval: Interval) -> Iterator[Fault]:
    """Yield a fault if the event loop was blocked; one late wake-up is none."""
    blocked = interval.above(BLOCKED_SECONDS, _LAG)
    wake_ups = interval.increase(f"{_LAG}_count")
    mean = interval.increase(f"{_LAG}_sum") / wake_ups if wake_ups else 0.0
    if blocked >= MIN_BLOCKS or mean > MAX_MEAN_LAG_SECONDS:
        yield Fault(
            "event loop",
            f"blocked {blocked:.0f} times for more than {BLOCKED_SECONDS:g} s, "
            f"late by {mean * 1000:.0f} ms on average",
            "look at the CPU of the process and at slow calls in its log",
        )


def _degraded(dependency: str, problem: str) -> Callable[[Interval], Iterator[Fault]]:
    def check(interval: Interval) -> Iterator[Fault]:
        if interval.gauge("academy_degraded", dependency=dependency):
            yield Fault(dependency, problem, "run academy doctor")

    return check


def _pool_faults(interval: Interval) -> Iterator[Fault]:
    """Yield a fault if calls got no connection to Postgres in time."""
    timeouts = interval.increase("academy_database_pool_timeouts_total")
    if timeouts:
        waiting = interval.gauge("academy_database_pool_waiting") or 0
        yield Fault(
            "database pool",
            f"exhausted: {timeouts:.0f} calls got no connection, {waiting:.0f} wait",
            "look for slow statements and locks, then raise DATABASE_POOL_SIZE",
        )


def _dead_letter_faults(interval: Interval) -> Iterator[Fault]:
    dead = interval.gauge("academy_outbox_entries", state="dead")
    if dead:
        problem = f"{dead:.0f} dead letters"
        yield Fault("outbox", problem, "run academy outbox list")


def _worker_faults(interval: Interval) -> Iterator[Fault]:
    """Yield a fault if a worker process does not respond, or has not started."""
    configured = interval.gauge("academy_workers", state="configured") or 0
    responding = interval.gauge("academy_workers", state="responding") or 0
    if responding < configured:
        yield Fault(
            "workers",
            f"{responding:.0f} of {configured:.0f} respond",
            "find the workers that failed in the log: its lines have their numbers",
        )


_CHECKS: tuple[Callable[[Interval], Iterator[Fault]], ...] = (
    _degraded("postgres", "unavailable: calls are refused with UNAVAILABLE"),
    _event_loop_faults,
    _hashing_faults,
    _pool_faults,
    _degraded("smtp", "mail server unavailable: e-mails wait in the outbox"),
    _degraded("replica", "away or too far behind: the primary is read instead"),
    _degraded("redis", "unavailable: each process applies the rate limits separately"),
    _dead_letter_faults,
    _worker_faults,
)
