"""Metrics as the text that Prometheus reads.

https://prometheus.io/docs/instrumenting/exposition_formats/. prometheus-client takes
five times as long, and blocks the event loop meanwhile: docs/decisions/metrics.md.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate

from server.observability.metrics.definitions import BUILD_INFO, Definition
from server.observability.metrics.histogram import Histogram

Labels = Sequence[str]
# Label values, counts of the buckets, sum of the durations.
Row = tuple[Labels, Sequence[int], float]


def render(families: Iterable[str]) -> bytes:
    """Return the text of metrics."""
    return "".join(families).encode()


def number(definition: Definition, value: float) -> str:
    """Return a counter or gauge without labels."""
    return numbers(definition, [((), value)])


def numbers(definition: Definition, samples: Iterable[tuple[Labels, float]]) -> str:
    """Return a counter or gauge with a value for each combination of labels."""
    lines = [_head(definition)]
    for labels, value in samples:
        pairs = ",".join(_pairs(definition, labels))
        series = f"{definition.name}{{{pairs}}}" if pairs else definition.name
        lines.append(f"{series} {float(value)}\n")
    return "".join(lines)


def numbers_by(definition: Definition, values: Mapping[str, float]) -> str:
    """Return a counter or gauge with one label."""
    return numbers(definition, (((label,), value) for label, value in values.items()))


def histogram(definition: Definition, histogram: Histogram) -> str:
    """Return a histogram without labels."""
    return histograms(definition, [((), histogram.buckets, histogram.seconds)])


def histograms(definition: Definition, rows: Iterable[Row]) -> str:
    """Return a histogram; the buckets of the text are cumulative."""
    lines, name = [_head(definition)], definition.name
    bounds = [f'le="{bound}"' for bound in (*definition.buckets, "+Inf")]
    for labels, buckets, seconds in rows:
        pairs = _pairs(definition, labels)
        begin = f"{name}_bucket{{{','.join((*pairs, ''))}"
        totals = list(accumulate(buckets))
        for bound, total in zip(bounds, totals, strict=True):
            lines.append(f"{begin}{bound}}} {float(total)}\n")
        series = f"{{{','.join(pairs)}}}" if pairs else ""
        lines.append(f"{name}_sum{series} {seconds}\n")
        lines.append(f"{name}_count{series} {float(totals[-1])}\n")
    return "".join(lines)


def build_info() -> str:
    """Return the release and the version of Python."""
    labels = version("blatam-academy"), platform.python_version()
    return numbers(BUILD_INFO, [(labels, 1)])


def _head(definition: Definition) -> str:
    name = definition.name
    return f"# HELP {name} {definition.help}\n# TYPE {name} {definition.type}\n"


def _pairs(definition: Definition, labels: Labels) -> list[str]:
    return [
        f'{name}="{_escaped(value)}"'
        for name, value in zip(definition.labels, labels, strict=True)
    ]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
