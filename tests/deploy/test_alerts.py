"""The alert rules: each uses what exists, is explained, and fires alone."""

import re

import pytest

from tests.deploy.rules import (
    ROOT,
    Rule,
    fired_alerts,
    known_labels,
    load_rules,
    unknown_names,
)
from tests.deploy.situations import (
    CERTIFICATE_EXPIRY,
    CERTIFICATE_RENEWAL,
    HEALTHY,
    SITUATIONS,
    gauge,
    histogram,
    samples_of,
    series,
)

RULES = load_rules()
ALERTS = [rule for rule in RULES if rule.is_alert]
RECORDED = [rule for rule in RULES if not rule.is_alert]
OPERATIONS = (ROOT / "docs/operations.md").read_text()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_uses_only_metrics_and_labels_that_exist(rule: Rule) -> None:
    assert unknown_names(rule.expression, known_labels(RECORDED)) == set()


@pytest.mark.parametrize(
    ("expression", "unknown"),
    [
        ("academy_degrade == 1", {"academy_degrade"}),
        ('academy_degraded{dependecy="redis"}', {"academy_degraded{dependecy}"}),
        ("sum by (method) (up)", {"method of up"}),
        (
            "up unless on (task) academy_build_info",
            {"task of up", "task of academy_build_info"},
        ),
        ('rate(academy_mails_total{result="x"}[5m])', {"academy_mails_total{result}"}),
    ],
)
def test_unknown_metrics_and_labels_are_detected(
    expression: str, unknown: set[str]
) -> None:
    assert unknown_names(expression, known_labels()) == unknown


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule.name)
def test_alert_names_a_section_of_operations(alert: Rule) -> None:
    """An alert leads to what to do; the anchor of a heading is its lower-case text."""
    page, _, anchor = alert.annotations["runbook_url"].partition("#")
    assert page == "docs/operations.md"
    assert anchor == alert.name.lower()
    assert re.search(rf"^### {alert.name}$", OPERATIONS, re.MULTILINE)
    assert alert.annotations["summary"].endswith(".")
    assert alert.labels["severity"] in {"critical", "warning"}
    assert alert.labels["component"]


def test_operations_explains_no_alert_that_does_not_exist() -> None:
    explained = set(re.findall(r"^### (Academy\w+)$", OPERATIONS, re.MULTILINE))
    assert explained == {alert.name for alert in ALERTS}


def test_no_alert_fires_for_a_healthy_service() -> None:
    assert not fired_alerts(RULES, *samples_of([(HEALTHY, 3600)], 60))


def test_long_blocks_of_the_event_loop_fire() -> None:
    """A block of 20 s is one observation."""
    name = "academy_event_loop_lag_seconds"
    blocked = histogram(name, {"0.1": 6, "0.25": 6, "+Inf": 6.01}, 0.04)
    phases = [(HEALTHY, 600.0), ({**HEALTHY, **blocked}, 300.0)]
    fired = fired_alerts(RULES, *samples_of(phases, 60))
    assert fired.keys() == {"AcademyEventLoopBlocked"}


@pytest.mark.parametrize(("renewal", "fires"), [(86_400, False), (1_200, True)])
def test_short_lived_certificate_fires_only_when_renewal_is_due(
    renewal: float, fires: bool
) -> None:
    """A lifetime may be shorter than 14 days; the log and `doctor` follow it, too."""
    short = {
        series(CERTIFICATE_EXPIRY): gauge(renewal + 2 * 86_400),
        series(CERTIFICATE_RENEWAL): gauge(renewal),
    }
    fired = fired_alerts(RULES, *samples_of([({**HEALTHY, **short}, 7_200)], 60))
    assert fired.keys() == ({"AcademyCertificateExpires"} if fires else set())


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule.name)
def test_alert_fires_alone(alert: Rule) -> None:
    """One fault sends one alert, although it changes other metrics, too.

    No other alert fires when it begins, while it lasts, or after it has ended.
    """
    fault = {**HEALTHY, **SITUATIONS[alert.name]}
    phases = [(HEALTHY, 600.0), (fault, 600 + alert.seconds), (HEALTHY, 1200.0)]
    fired = fired_alerts(RULES, *samples_of(phases, 60))
    assert fired.keys() == {alert.name}
    assert fired[alert.name].at - 600 <= alert.seconds + 300
    used = re.findall(r"\$labels\.(\w+)", alert.annotations["summary"])
    assert set(used) <= fired[alert.name].labels.keys()
