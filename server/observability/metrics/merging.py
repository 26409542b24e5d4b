"""Merges the metrics of several processes into one text."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.observability.metrics.definitions import DEFINITIONS, Merge, MetricType
from server.observability.metrics.exposition import render

_MAX_METRICS = frozenset(
    definition.name
    for definition in DEFINITIONS.values()
    if definition.merge is Merge.MAX
)
SampleKey = tuple[str, tuple[tuple[str, str], ...]]


def merge_expositions(texts: Iterable[bytes]) -> bytes:
    """Return one text: counts are summed, gauges by the rule of their definition."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[SampleKey, float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            families.setdefault(family.name, family)
            _add(values.setdefault(family.name, {}), family)
    return render(_merged(families[name], values[name]) for name in families)


def counts_only(text: bytes) -> bytes:
    """Return the counters and histograms of a text, without the gauges."""
    families = text_string_to_metric_families(text.decode())
    return render(family for family in families if family.type != MetricType.GAUGE)


def _add(values: dict[SampleKey, float], family: Metric) -> None:
    for sample in family.samples:
        key = sample.name, tuple(sample.labels.items())
        if key not in values:
            values[key] = sample.value
        elif family.name in _MAX_METRICS:
            values[key] = max(values[key], sample.value)
        else:
            values[key] += sample.value


def _merged(family: Metric, values: dict[SampleKey, float]) -> Metric:
    merged = Metric(family.name, family.documentation, family.type)
    for (name, labels), value in values.items():
        merged.add_sample(name, dict(labels), value)
    return merged
