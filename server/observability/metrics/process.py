"""What one application counts; each application of a process has its own."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from server.observability.metrics import definitions
from server.observability.metrics.calls import SERVER_STREAM, CallCounts, CallMetrics
from server.observability.metrics.definitions import HTTP_BUCKETS
from server.observability.metrics.exposition import (
    build_info,
    histogram,
    histograms,
    numbers,
    numbers_by,
    render,
)
from server.observability.metrics.histogram import Histogram, ThreadSafeHistogram

_SHORT_SECONDS = HTTP_BUCKETS[0]
RequestKey = tuple[str, str, int]  # method, route, status


@dataclass(frozen=True, slots=True)
class HttpMetrics:
    """Durations of HTTP requests by method, route and status.

    The caller bounds the values: known methods, routes of the edge. The status of a
    request that got no response is 0.
    """

    durations: dict[RequestKey, Histogram] = field(default_factory=dict)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        key = method, route, status
        durations = self.durations.get(key)
        if durations is None:
            durations = self.durations[key] = Histogram(HTTP_BUCKETS)
        # As Histogram.observe: one call less for each request.
        short = seconds <= _SHORT_SECONDS  # then there is no search
        bucket = 0 if short else bisect_left(HTTP_BUCKETS, seconds)
        durations.buckets[bucket] += 1
        durations.seconds += seconds

    def families(self) -> Iterator[str]:
        """Return the metric."""
        yield histograms(
            definitions.HTTP_SECONDS,
            (
                ((method, route, str(status or "")), row.buckets, row.seconds)
                for (method, route, status), row in self.durations.items()
            ),
        )


@dataclass(frozen=True, slots=True)
class EdgeMetrics:
    """What a process counts that serves REST, with or without the application."""

    requests: HttpMetrics = field(default_factory=HttpMetrics)
    loop_lag: Histogram = field(
        default_factory=lambda: Histogram(definitions.EVENT_LOOP_LAG.buckets)
    )
    # Of parts that exist only with some settings, such as TLS.
    others: list[Callable[[], Iterator[str]]] = field(default_factory=list)

    def families(self) -> Iterator[str]:
        """Return the metrics."""
        yield from self.requests.families()
        yield histogram(definitions.EVENT_LOOP_LAG, self.loop_lag)
        for families in self.others:
            yield from families()
        yield build_info()

    async def render(self) -> bytes:
        """Return the text for Prometheus."""
        return render(self.families())


@dataclass(frozen=True, slots=True)
class ProcessMetrics:
    """What an application counts while it happens; the rest is read at a scrape."""

    calls: CallMetrics = field(default_factory=CallMetrics.of)
    edge: EdgeMetrics = field(default_factory=EdgeMetrics)
    restarts: Counter[str] = field(default_factory=Counter)  # by background task
    mails: Counter[str] = field(default_factory=Counter)  # by outcome
    # Whether the last use of a dependency failed, read at a scrape.
    degraded: dict[str, Callable[[], bool]] = field(default_factory=dict)
    hashing_wait: Histogram = field(
        default_factory=lambda: ThreadSafeHistogram(definitions.HASHING_WAIT.buckets)
    )

    def families(self) -> Iterator[str]:
        """Return the metrics."""
        if not self.calls.in_file:  # otherwise the supervisor reads them
            yield from call_families(list(self.calls))
        yield from self.edge.families()
        yield numbers_by(definitions.BACKGROUND_RESTARTS, self.restarts)
        yield numbers_by(definitions.MAILS, self.mails)
        yield histogram(definitions.HASHING_WAIT, self.hashing_wait)


def call_families(called: list[CallCounts]) -> Iterator[str]:
    """Return the metrics of calls."""
    for definition, attribute in (
        (definitions.CALLS_STARTED, "started"),
        (definitions.MESSAGES_RECEIVED, "started"),
        (definitions.MESSAGES_SENT, "sent"),
    ):
        yield numbers(definition, ((c.values, getattr(c, attribute)) for c in called))
    yield numbers(
        definitions.CALLS_HANDLED,
        (
            ((*counts.values, code), count)
            for counts in called
            for code, count in counts.handled.items()
        ),
    )
    rows = ((counts.values, counts.buckets, counts.seconds) for counts in called)
    yield histograms(definitions.CALL_SECONDS, rows)
    yield numbers_by(definitions.RATE_LIMITED, _by_method(called, "rate_limited"))
    streams = [c for c in called if c.labels.grpc_type == SERVER_STREAM]
    yield numbers_by(
        definitions.STREAM_SUBSCRIBERS, _by_method(streams, "open_streams")
    )


def _by_method(called: list[CallCounts], attribute: str) -> Counter[str]:
    """Return the sum over all transports, by method."""
    sums: Counter[str] = Counter()
    for counts in called:
        sums[counts.labels.grpc_method] += getattr(counts, attribute)
    return sums
