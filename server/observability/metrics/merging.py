"""Merges the metrics of several processes, as `exposition` writes them, into one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from server.observability.metrics.definitions import DEFINITIONS, Merge, MetricType

_MERGE: dict[Merge, Callable[[float, float], float]] = {
    Merge.SUM: operator.add,
    Merge.MAX: max,
    Merge.MIN: min,
}


@dataclass(slots=True)
class _Family:
    """One metric: its lines of comments, and its values by name and labels."""

    name: str
    merge: Callable[[float, float], float] = operator.add
    comments: dict[str, None] = field(default_factory=dict)  # an ordered set
    values: dict[str, float] = field(default_factory=dict)

    @property
    def is_gauge(self) -> bool:
        return f"# TYPE {self.name} {MetricType.GAUGE}" in self.comments

    def add(self, line: str) -> None:
        """Add a sample of one more process."""
        series, _, text = line.rpartition(" ")
        value, present = float(text), self.values.get(series)
        if present is None:
            self.values[series] = value
        else:
            self.values[series] = self.merge(present, value)

    def text(self) -> str:
        samples = (f"{series} {value}" for series, value in self.values.items())
        return "\n".join((*self.comments, *samples, ""))


def merge_expositions(texts: Iterable[bytes]) -> bytes:
    """Return one text: counts are summed, gauges by the rule of their definition."""
    families = _read(texts)
    return "".join(family.text() for family in families).encode()


def counts_only(text: bytes) -> bytes:
    """Return the counters and histograms of a text, without the gauges."""
    counts = (family for family in _read([text]) if not family.is_gauge)
    return "".join(family.text() for family in counts).encode()


def _new_family(name: str) -> _Family:
    definition = DEFINITIONS.get(name)
    return _Family(name, _MERGE[definition.merge] if definition else operator.add)


def _read(texts: Iterable[bytes]) -> list[_Family]:
    families: dict[str, _Family] = {}
    for text in texts:
        family = _Family("")
        for line in text.decode().split("\n")[:-1]:
            if line.startswith("#"):
                name = line.split(" ", 3)[2]
                family = families.setdefault(name, _new_family(name))
                family.comments[line] = None
            else:
                family.add(line)
    return list(families.values())
