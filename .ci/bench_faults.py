"""Run the reliability experiments and print one table; a missed bar is no failure.

`python .ci/bench_faults.py [ROW ...]` runs the rows named, for example `L4 L7`. Each
row has a time bound. SOAK=2h sets the duration of L22, with its warm-up, and KILLS=50
how often L18 kills. They are short unless the row is named.
"""

import argparse
import asyncio
import importlib
import os
import pkgutil
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "generated")]
# The experiments start processes while gRPC runs.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

if TYPE_CHECKING:
    from tests.load.faults.experiment import Experiment
    from tests.load.row import ResultRow

# of rows that take long: when they are named, and in a run of all rows
DURATIONS = {"SOAK": ("L22", "25m", "2m"), "KILLS": ("L18", "200", "20")}
LINE = "{:<58} {:>9} {:>7}  {:<6} {}"


def main() -> int:
    """Run the experiments; return 1 if one crashed, 0 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all rows if none")
    named = parser.parse_args().rows
    for variable, (row, long, short) in DURATIONS.items():
        os.environ.setdefault(variable, long if row in named else short)
    experiments = _experiments()
    names = named or sorted(experiments, key=_number)
    if unknown := set(names) - experiments.keys():
        sys.exit(f"no such row: {', '.join(sorted(unknown))}; there are L1 to L25")
    print(LINE.format("row", "figure", "bar", "", "notes"), flush=True)
    results = [_print_rows(experiments[name]) for name in names]
    below = sum(not row.ok for rows in results for row in rows or [])
    crashed = sum(rows is None for rows in results)
    print(f"\n{below} below their bar, {crashed} crashed")
    return 1 if crashed else 0


def _number(row: str) -> int:
    return int(row[1:])


def _experiments() -> dict[str, "Experiment"]:
    """Import every module of experiments, and return what they register."""
    package = importlib.import_module("tests.load.faults")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name != "observed_serve":  # it runs when it is imported
            importlib.import_module(f"tests.load.faults.{module.name}")
    registry = importlib.import_module("tests.load.faults.experiment")
    return dict(registry.EXPERIMENTS)


def _print_rows(experiment: "Experiment") -> list["ResultRow"] | None:
    """Run one experiment and print its rows; return None if it crashed."""
    from tests.load.faults.experiment import Skipped

    started = time.monotonic()
    try:
        rows = asyncio.run(_bounded(experiment))
    except Skipped as reason:
        print(LINE.format(experiment.row, "", "", "", f"skipped: {reason}"), flush=True)
        return []
    except Exception as error:
        traceback.print_exc()
        cause = f"{type(error).__name__}: {error}".partition("\n")[0]
        if time.monotonic() - started >= experiment.max_seconds:
            cause = f"not finished after {experiment.max_seconds:.0f} s"
        print(LINE.format(experiment.row, "", "", "CRASH", cause), flush=True)
        return None
    seconds = time.monotonic() - started
    for row in rows:
        notes = "; ".join(filter(None, (row.unit, row.notes, f"took {seconds:.0f} s")))
        figure = f"{row.figure:.2f}"
        bar = "" if row.target is None else f"{row.target:.2f}"
        verdict = "ok" if row.ok else "BELOW"
        name = f"{experiment.row} {row.name}"
        print(LINE.format(name, figure, bar, verdict, notes), flush=True)
    return rows


async def _bounded(experiment: "Experiment") -> list["ResultRow"]:
    async with asyncio.timeout(experiment.max_seconds):
        return await experiment.run()


if __name__ == "__main__":
    sys.exit(main())
