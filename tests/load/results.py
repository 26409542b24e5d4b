"""The results of `make bench`: one JSON file for each run, and two plots of all runs.

`bench-results/` has, beside the files of the runs: `latency.svg` (of the last run that
measured it) and `ratios.svg` (of every run, over the commits).
"""

import importlib.util
import json
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.load.row import ResultRow

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "bench-results"
MAX_LINES = 12  # of one plot


def save(rows: Sequence[ResultRow], folder: Path = FOLDER) -> Path:
    """Write the rows of a run to a new file; return its path."""
    folder.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    commit = _git("rev-parse", "--short=10", "HEAD")
    run = {
        "at": now.isoformat(timespec="seconds"),
        "commit": commit,
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "rows": [asdict(row) | {"ok": row.ok} for row in rows],
    }
    path = folder / f"{now:%Y%m%dT%H%M%S}-{commit}.json"
    path.write_text(json.dumps(run, indent=1))
    return path


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return output.stdout.strip()


def plot(folder: Path = FOLDER) -> list[Path]:
    """Draw the plots of all runs in a folder; return their paths.

    There are none without matplotlib, which `make bench` installs.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return []
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    with_points = [run for run in runs if any(row["points"] for row in run["rows"])]
    paths = [_plot_ratios(runs, folder / "ratios.svg")] if runs else []
    if with_points:
        paths.append(_plot_latency(with_points[-1], folder / "latency.svg"))
    return paths


def _plot_latency(run: Any, path: Path) -> Path:
    series = {
        row["name"]: [(float(x), float(y)) for x, y in row["points"]]
        for row in run["rows"]
        if row["points"]
    }
    title = f"Latency of GetUser against load, commit {run['commit']}"
    return _draw(path, title, "share of the capacity, %", "milliseconds", series)


def _plot_ratios(runs: Iterable[Any], path: Path) -> Path:
    """Draw each figure as a share of its target: 1 or more reaches the target."""
    series = defaultdict(list)
    for number, run in enumerate(runs):
        for row in run["rows"]:
            if share := _share(row):
                series[row["name"]].append((float(number), share))
    longest = sorted(series, key=lambda name: -len(series[name]))[:MAX_LINES]
    title = "Figures as shares of their targets, over the runs"
    return _draw(
        path, title, "run", "share of the target", {n: series[n] for n in longest}
    )


def _share(row: Any) -> float | None:
    figure, target = row["figure"], row["target"]
    if not figure or not target or row["better"] == "equal":
        return None
    ratio = figure / target if row["better"] == "higher" else target / figure
    return float(ratio)


def _draw(
    path: Path,
    title: str,
    x_label: str,
    y_label: str,
    series: dict[str, list[tuple[float, float]]],
) -> Path:
    from matplotlib.figure import Figure  # only benchmarks need it

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    figure.savefig(path)
    return path
