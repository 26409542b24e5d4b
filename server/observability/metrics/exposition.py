"""Metrics as the text that Prometheus reads."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.observability.metrics.definitions import BUILD_INFO, Definition
from server.observability.metrics.histogram import Histogram

Labels = Sequence[str]
# Label values, counts of the buckets, sum of the durations.
Row = tuple[Labels, Sequence[int], float]


@dataclass(frozen=True, slots=True)
class _Families(Collector):
    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def render(families: Iterable[Metric]) -> bytes:
    """Return the text of metrics."""
    return generate_latest(_Families(families))


def number(definition: Definition, value: float) -> Metric:
    """Return a counter or gauge without labels."""
    return numbers(definition, [((), value)])


def numbers(definition: Definition, samples: Iterable[tuple[Labels, float]]) -> Metric:
    """Return a counter or gauge with a value for each combination of labels."""
    metric = _metric(definition)
    for labels, value in samples:
        metric.add_sample(definition.name, _pairs(definition, labels), value)
    return metric


def numbers_by(definition: Definition, values: Mapping[str, float]) -> Metric:
    """Return a counter or gauge with one label."""
    return numbers(definition, (((label,), value) for label, value in values.items()))


def histogram(definition: Definition, histogram: Histogram) -> Metric:
    """Return a histogram without labels."""
    return histograms(definition, [((), histogram.buckets, histogram.seconds)])


def histograms(definition: Definition, rows: Iterable[Row]) -> Metric:
    """Return a histogram; the buckets of the text are cumulative."""
    metric, name = _metric(definition), definition.name
    bounds = [*map(str, definition.buckets), "+Inf"]
    for labels, buckets, seconds in rows:
        pairs = _pairs(definition, labels)
        totals = list(accumulate(buckets))
        for bound, total in zip(bounds, totals, strict=True):
            metric.add_sample(f"{name}_bucket", pairs | {"le": bound}, total)
        metric.add_sample(f"{name}_sum", pairs, seconds)
        metric.add_sample(f"{name}_count", pairs, totals[-1])
    return metric


def build_info() -> Metric:
    """Return the release and the version of Python."""
    labels = version("blatam-academy"), platform.python_version()
    return numbers(BUILD_INFO, [(labels, 1)])


def _metric(definition: Definition) -> Metric:
    name = definition.name.removesuffix("_total")  # the name of the family
    return Metric(name, definition.help, definition.type)


def _pairs(definition: Definition, labels: Labels) -> dict[str, str]:
    return dict(zip(definition.labels, labels, strict=True))
