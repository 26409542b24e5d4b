"""An evaluator of the part of PromQL that the alert rules use.

It fails for anything else. `rate` and `increase` do not extrapolate to the ends of
their range, as Prometheus does.
"""

import math
import operator
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import promql_parser as ast
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
NAME = "__name__"
LOOKBACK_SECONDS = 300.0
COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else math.nan if not a else math.inf,
}
AGGREGATIONS: Mapping[str, Callable[[Iterable[float]], float]] = {
    "sum": sum,
    "max": max,
    "min": min,
    "count": lambda values: len(list(values)),
}


@lru_cache
def parse(expression: str) -> Any:
    return ast.parse(expression)


def without_name(labels: Labels) -> Labels:
    return frozenset((name, value) for name, value in labels if name != NAME)


def only(labels: Labels, names: Iterable[str]) -> Labels:
    return frozenset((name, value) for name, value in labels if name in set(names))


@dataclass
class Series:
    """The samples of one series, in the order of their times in seconds."""

    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def within(self, start: float, end: float) -> slice:
        """Return the samples after `start` and not after `end`."""
        return slice(bisect_right(self.times, start), bisect_right(self.times, end))


@dataclass
class Samples:
    """The series of each metric, by their labels."""

    series: defaultdict[str, dict[Labels, Series]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def add(self, at: float, name: str, value: float, **labels: str) -> None:
        key = frozenset({NAME: name, **labels}.items())
        series = self.series[name].setdefault(key, Series())
        series.times.append(at)
        series.values.append(value)

    def add_text(self, at: float, text: str, **labels: str) -> None:
        """Add what a scrape returned, with the labels that Prometheus adds."""
        self.add(at, "up", 1, **labels)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.add(at, sample.name, sample.value, **sample.labels, **labels)

    def evaluate(self, expression: str, at: float) -> Vector:
        """Return the result of an expression that is a vector."""
        result = self._evaluate(parse(expression), at)
        assert isinstance(result, dict)
        return result

    def _evaluate(self, node: Any, at: float) -> Any:
        match node:
            case ast.ParenExpr():
                return self._evaluate(node.expr, at)
            case ast.NumberLiteral():
                return node.val
            case ast.VectorSelector():
                # The result of a recording rule is stale with its next evaluation.
                seconds = 1.0 if ":" in str(node.name) else LOOKBACK_SECONDS
                return {
                    labels: series.values[within.stop - 1]
                    for labels, series, within in self._select(node, at, seconds)
                }
            case ast.AggregateExpr():
                return self._aggregate(node, at)
            case ast.Call():
                return self._call(node, at)
            case ast.BinaryExpr():
                return self._binary(node, at)
        raise NotImplementedError(type(node))

    def _select(
        self, node: Any, at: float, seconds: float
    ) -> Iterator[tuple[Labels, Series, slice]]:
        for labels, series in self.series.get(node.name, {}).items():
            within = series.within(at - seconds, at)
            if within.start < within.stop and _matches(node, dict(labels)):
                yield labels, series, within

    def _aggregate(self, node: Any, at: float) -> Vector:
        groups: defaultdict[Labels, list[float]] = defaultdict(list)
        names = node.modifier.labels if node.modifier else ()
        assert not node.modifier or node.modifier.type == ast.AggModifierType.By
        for labels, value in self._evaluate(node.expr, at).items():
            groups[only(labels, names)].append(value)
        aggregate = AGGREGATIONS[str(node.op)]
        return {labels: aggregate(values) for labels, values in groups.items()}

    def _call(self, node: Any, at: float) -> Any:
        match node.func.name:
            case "rate":
                return self._growth(node.args[0], at, per_second=True)
            case "increase":
                return self._growth(node.args[0], at, per_second=False)
            case "histogram_quantile":
                quantile, buckets = (self._evaluate(arg, at) for arg in node.args)
                return _histogram_quantile(quantile, buckets)
            case "time":
                return at
            case "absent":
                return {} if self._evaluate(node.args[0], at) else {frozenset(): 1.0}
        raise NotImplementedError(node.func.name)

    def _growth(self, node: Any, at: float, *, per_second: bool) -> Vector:
        vector = {}
        seconds = node.range.total_seconds()
        for labels, series, within in self._select(node.vector_selector, at, seconds):
            times, values = series.times[within], series.values[within]
            if len(values) > 1:
                growth = sum(b - a if b >= a else b for a, b in pairwise(values))
                elapsed = times[-1] - times[0]
                vector[without_name(labels)] = growth / (elapsed if per_second else 1)
        return vector

    def _binary(self, node: Any, at: float) -> Any:
        left, right = (self._evaluate(side, at) for side in (node.lhs, node.rhs))
        name = str(node.op)
        if not isinstance(left, dict):
            return ARITHMETIC[name](left, right)
        matching = node.modifier.matching if node.modifier else None
        assert not matching or matching.type == ast.LabelModifierType.Include

        def key(labels: Labels) -> Labels:
            return only(labels, matching.labels) if matching else without_name(labels)

        if name in ("and", "or", "unless"):
            return _combine(name, left, right, key)
        if isinstance(right, dict):
            by_key = {key(labels): value for labels, value in right.items()}
            pairs = [(x, left[x], by_key[key(x)]) for x in left if key(x) in by_key]
        else:
            pairs = [(labels, value, right) for labels, value in left.items()]
        if name in COMPARISONS:
            return {x: a for x, a, b in pairs if COMPARISONS[name](a, b)}
        return {without_name(x): ARITHMETIC[name](a, b) for x, a, b in pairs}


def _matches(node: Any, labels: Mapping[str, str]) -> bool:
    for matcher in node.matchers.matchers:
        value = labels.get(matcher.name, "")
        is_equal = (
            value == matcher.value
            if matcher.op in (ast.MatchOp.Equal, ast.MatchOp.NotEqual)
            else re.fullmatch(matcher.value, value) is not None
        )
        if is_equal is (matcher.op in (ast.MatchOp.NotEqual, ast.MatchOp.NotRe)):
            return False
    return True


def _combine(
    name: str, left: Vector, right: Vector, key: Callable[[Labels], Labels]
) -> Vector:
    in_right = {key(labels) for labels in right}
    if name == "or":
        in_left = {key(labels) for labels in left}
        return left | {x: v for x, v in right.items() if key(x) not in in_left}
    return {x: v for x, v in left.items() if (key(x) in in_right) is (name == "and")}


def _histogram_quantile(quantile: float, buckets: Vector) -> Vector:
    groups: defaultdict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, count in buckets.items():
        bound = float(dict(labels)["le"])
        rest = frozenset(pair for pair in labels if pair[0] not in ("le", NAME))
        groups[rest].append((bound, count))
    return {labels: _quantile(quantile, group) for labels, group in groups.items()}


def _quantile(quantile: float, buckets: list[tuple[float, float]]) -> float:
    ordered = sorted(buckets)
    rank = quantile * ordered[-1][1]
    lower, below = 0.0, 0.0
    for upper, count in ordered:
        if count and count >= rank:
            share = (rank - below) / (count - below)
            return lower if math.isinf(upper) else lower + (upper - lower) * share
        lower, below = upper, count
    return math.nan
