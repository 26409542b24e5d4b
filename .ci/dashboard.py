"""Print the Grafana dashboard: `python .ci/dashboard.py > deploy/grafana/academy.json`.

Its panels are in deploy/grafana/panels.yaml. Every release of Grafana imports this
model of a dashboard, the classic one; its last schema version is 42.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PANELS = Path(__file__).parents[1] / "deploy/grafana/panels.yaml"
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA_VERSION = 42
SELECTOR = 'job="academy", instance=~"$instance"'
WIDTH = 24  # columns of Grafana's grid
PANEL_HEIGHT = 8


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    return {
        "uid": "academy",
        "title": "Blatam Academy",
        "tags": ["academy"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair on all panels
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables()},
        "annotations": {"list": [alert_annotation()]},
        "links": [],
        "panels": list(panels()),
    }


def variables() -> list[dict[str, Any]]:
    """Return the data source and the processes that a user selects."""
    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
        },
        {
            "name": "instance",
            "label": "Process",
            "type": "query",
            "datasource": DATA_SOURCE,
            "query": {
                "query": 'label_values(up{job="academy"}, instance)',
                "qryType": 1,
            },
            "refresh": 2,  # when the time range changes: processes come and go
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]


def alert_annotation() -> dict[str, Any]:
    """Return the annotation that marks firing alerts on every graph."""
    return {
        "name": "Alerts",
        "datasource": DATA_SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{job="academy", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
    }


def panels() -> Iterator[dict[str, Any]]:
    """Yield the rows and their panels, from left to right and from top to bottom."""
    number, y = 0, 0
    for title, group in yaml.safe_load(PANELS.read_text()).items():
        number += 1
        yield row_of(title, number, y)
        y += 1
        columns = 4 if len(group) == 4 else 3
        width = WIDTH // columns
        for index, panel in enumerate(group):
            number += 1
            line, column = divmod(index, columns)
            position = {
                "h": PANEL_HEIGHT,
                "w": width,
                "x": column * width,
                "y": y + line * PANEL_HEIGHT,
            }
            yield {"id": number, "gridPos": position, **panel_of(panel)}
        y += -(-len(group) // columns) * PANEL_HEIGHT


def row_of(title: str, number: int, y: int) -> dict[str, Any]:
    """Return the heading of a row."""
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
        "panels": [],
    }


def panel_of(panel: dict[str, Any]) -> dict[str, Any]:
    """Return a panel without its place."""
    kind = panel.get("type", "timeseries")
    options = {
        "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}},
    }
    return {
        "type": kind,
        "title": panel["title"],
        "description": panel.get("description", ""),
        "datasource": DATA_SOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.get("unit", "short"), "min": 0},
            "overrides": [],
        },
        "options": options[kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATA_SOURCE,
                "expr": expression.replace("$selector", SELECTOR),
                "legendFormat": legend,
            }
            for index, (legend, expression) in enumerate(panel["queries"].items())
        ],
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
