"""The Grafana dashboard is up to date and shows all metrics, and no others."""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from server.observability.metrics.definitions import DEFINITIONS
from tests.deploy.rules import ROOT, known_labels, unknown_names

PATH = ROOT / "deploy/grafana/academy.json"
DASHBOARD = json.loads(PATH.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def expressions() -> Iterator[str]:
    for panel in PANELS:
        for target in panel["targets"]:
            # Grafana replaces it by a duration
            yield target["expr"].replace("$__rate_interval", "5m")


def test_dashboard_is_what_its_generator_prints() -> None:
    printed = subprocess.check_output([sys.executable, ".ci/dashboard.py"], cwd=ROOT)
    message = "run: python .ci/dashboard.py > deploy/grafana/academy.json"
    assert printed == PATH.read_bytes(), message


@pytest.mark.parametrize("expression", list(expressions()))
def test_panel_uses_only_metrics_and_labels_that_exist(expression: str) -> None:
    assert unknown_names(expression, known_labels()) == set()


def test_dashboard_shows_every_metric() -> None:
    text = "\n".join(expressions())
    assert [name for name in DEFINITIONS if name not in text] == []


def test_every_query_reads_the_selected_data_source() -> None:
    variables = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    queries: list[dict[str, Any]] = [
        *PANELS,
        *(target for panel in PANELS for target in panel["targets"]),
        *DASHBOARD["annotations"]["list"],
        variables["instance"],
    ]
    assert all(query["datasource"] == SOURCE for query in queries)


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        assert (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
