"""The alert rules, evaluated over samples as Prometheus does."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as ast
import yaml

from server.observability.metrics.definitions import DEFINITIONS, MetricType
from tests.deploy.promql import Samples

ROOT = Path(__file__).parents[2]
SCRAPE_LABELS = {"job", "instance"}  # which Prometheus adds


@dataclass(frozen=True, slots=True)
class Rule:
    """A recording rule, or an alert that must be true for a time."""

    name: str
    expression: str
    is_alert: bool
    seconds: float
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def load_rules() -> list[Rule]:
    """Return the rules of deploy/alerts.yaml in their order."""
    document = yaml.safe_load((ROOT / "deploy/alerts.yaml").read_text())
    return [_rule(rule) for group in document["groups"] for rule in group["rules"]]


def _rule(rule: Mapping[str, Any]) -> Rule:
    return Rule(
        name=rule.get("alert") or rule["record"],
        expression=rule["expr"],
        is_alert="alert" in rule,
        seconds=(
            ast.parse_duration(rule["for"]).total_seconds() if "for" in rule else 0.0
        ),
        labels=rule.get("labels", {}),
        annotations=rule.get("annotations", {}),
    )


@dataclass(frozen=True, slots=True)
class Fired:
    """When an alert fired first, and the labels it had."""

    at: float
    labels: Mapping[str, str]


def pending_alerts(
    rules: Iterable[Rule], samples: Samples, at: float
) -> dict[str, Mapping[str, str]]:
    """Return the alerts whose condition is true, with the labels of one result.

    The values of the other rules are recorded.
    """
    pending: dict[str, Mapping[str, str]] = {}
    for rule in rules:
        for labels, value in samples.evaluate(rule.expression, at).items():
            named = {name: text for name, text in labels if name != "__name__"}
            if rule.is_alert:
                pending[rule.name] = named
            else:
                samples.add(at, rule.name, value, **named)
    return pending


def fired_alerts(
    rules: Sequence[Rule], samples: Samples, times: Iterable[float]
) -> dict[str, Fired]:
    """Return the alerts that fire at one of these times at least."""
    since: dict[str, float] = {}
    fired: dict[str, Fired] = {}
    for at in times:
        pending = pending_alerts(rules, samples, at)
        since = {name: since.get(name, at) for name in pending}
        for rule in rules:
            if rule.name in since and at - since[rule.name] >= rule.seconds:
                fired.setdefault(rule.name, Fired(at, pending[rule.name]))
    return fired


def known_labels(recorded: Iterable[Rule] = ()) -> dict[str, set[str]]:
    """Return the labels of every series that exists, by its name."""
    known = {"up": SCRAPE_LABELS}
    for definition in DEFINITIONS.values():
        labels = set(definition.labels) | SCRAPE_LABELS
        if definition.type is MetricType.HISTOGRAM:
            known[f"{definition.name}_bucket"] = labels | {"le"}
            known[f"{definition.name}_sum"] = labels
            known[f"{definition.name}_count"] = labels
        else:
            known[definition.name] = labels
    for rule in recorded:
        (grouping, _), *_ = _groupings(ast.parse(rule.expression))
        known[rule.name] = set(grouping)
    return known


def unknown_names(expression: str, known: Mapping[str, set[str]]) -> set[str]:
    """Return the metrics and labels of an expression which do not exist.

    A label of an aggregation or a matching must be one of the series inside it.
    """
    return set(_unknown(ast.parse(expression), known))


def _unknown(node: Any, known: Mapping[str, set[str]]) -> Iterator[str]:
    selectors = list(_selectors(node))
    for selector in selectors:
        labels = known.get(selector.name)
        if labels is None:
            yield selector.name
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name not in labels:
                yield f"{selector.name}{{{matcher.name}}}"
    for grouping, inner in _groupings(node):
        inside = {s.name: known.get(s.name, set()) for s in _selectors(inner)}
        for label in grouping:
            for name, available in inside.items():
                if label not in available:
                    yield f"{label} of {name}"


def _children(node: Any) -> list[Any]:
    names = ("expr", "lhs", "rhs", "vector_selector")
    children = [getattr(node, name) for name in names if hasattr(node, name)]
    return children + list(getattr(node, "args", []))


def _selectors(node: Any) -> Iterator[Any]:
    if isinstance(node, ast.VectorSelector):
        yield node
    for child in _children(node):
        yield from _selectors(child)


def _groupings(node: Any) -> Iterator[tuple[list[str], Any]]:
    modifier = getattr(node, "modifier", None)
    if isinstance(node, ast.AggregateExpr) and modifier:
        yield modifier.labels, node.expr
    if isinstance(node, ast.BinaryExpr) and modifier and modifier.matching:
        yield modifier.matching.labels, node
    for child in _children(node):
        yield from _groupings(child)
