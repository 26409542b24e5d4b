"""Samples of the metrics listener, and what changed between two scrapes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = Mapping[str, str]
Bucket = tuple[float, float]  # upper bound, cumulative number of observations


@dataclass(frozen=True, slots=True)
class Scrape:
    """The samples of one response, by name, and the time of the scrape in seconds."""

    at: float
    values: Mapping[str, Mapping[frozenset[tuple[str, str]], float]]

    @classmethod
    def parse(cls, text: str, at: float) -> Scrape:
        """Parse the Prometheus text format. Raises ValueError."""
        values: defaultdict[str, dict[frozenset[tuple[str, str]], float]]
        values = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name][frozenset(sample.labels.items())] = sample.value
        return cls(at, values)


@dataclass(frozen=True, slots=True)
class Interval:
    """Two scrapes, and the figures of the time between them.

    A counter that is lower in the later scrape was reset by a restart: it counts from
    0 again, as Prometheus' `increase` does. A metric that is missing has no value.
    """

    earlier: Scrape
    later: Scrape

    @property
    def seconds(self) -> float:
        """The length of the interval, never 0."""
        return max(self.later.at - self.earlier.at, 1e-3)

    def gauge(self, name: str, **labels: str) -> float | None:
        """Return the sum of the series that have these labels; None without one."""
        values = [value for _, value in _matching(self.later, name, labels)]
        return sum(values) if values else None

    def label_values(self, name: str, label: str) -> list[str]:
        """Return the values of a label, sorted."""
        series = self.later.values.get(name, {})
        return sorted(
            {dict(labels)[label] for labels in series if label in dict(labels)}
        )

    def increase(self, name: str, **labels: str) -> float:
        """Return by how much the counters with these labels have grown in all."""
        return sum(value for _, value in self._increases(name, labels))

    def rate(self, name: str, **labels: str) -> float:
        """Return the increase per second."""
        return self.increase(name, **labels) / self.seconds

    def increases_by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Return the increase for each value of a label; those of 0 are left out."""
        totals = self._totals_by(label, name, labels)
        return {key: value for key, value in totals.items() if value}

    def quantile(self, quantile: float, name: str, **labels: str) -> float | None:
        """Return a quantile of a histogram's new observations; None without any."""
        return quantile_of(quantile, self._buckets(name, labels))

    def above(self, bound: float, name: str, **labels: str) -> float:
        """Return how many new observations lie above a bound of the histogram."""
        buckets = sorted(self._buckets(name, labels))
        within = [count for upper, count in buckets if upper <= bound]
        return buckets[-1][1] - (within[-1] if within else 0.0) if buckets else 0.0

    def _buckets(self, name: str, labels: Labels) -> list[Bucket]:
        totals = self._totals_by("le", f"{name}_bucket", labels)
        return [(float(bound), count) for bound, count in totals.items()]

    def _totals_by(self, label: str, name: str, labels: Labels) -> dict[str, float]:
        totals: defaultdict[str, float] = defaultdict(float)
        for series, value in self._increases(name, labels):
            totals[series.get(label, "")] += value
        return totals

    def _increases(self, name: str, labels: Labels) -> Iterator[tuple[Labels, float]]:
        earlier = self.earlier.values.get(name, {})
        for series, value in _matching(self.later, name, labels):
            previous = earlier.get(frozenset(series.items()), 0.0)
            yield series, value - previous if value >= previous else value


def _matching(
    scrape: Scrape, name: str, labels: Labels
) -> Iterator[tuple[Labels, float]]:
    for series, value in scrape.values.get(name, {}).items():
        if labels.items() <= series and not math.isnan(value):
            yield dict(series), value


def quantile_of(quantile: float, buckets: Iterable[Bucket]) -> float | None:
    """Return a quantile by linear interpolation, as Prometheus does.

    A quantile above the highest finite bound is that bound.
    """
    ordered = sorted(buckets)
    total = ordered[-1][1] if ordered else 0.0
    if not total:
        return None
    rank = quantile * total
    lower, below = 0.0, 0.0
    for upper, count in ordered:
        if count >= rank:
            share = (rank - below) / (count - below) if count > below else 1.0
            return lower if math.isinf(upper) else lower + (upper - lower) * share
        lower, below = upper, count
    return lower
