"""Run tests/load/bench_*.py and print one table; a missed target is no failure.

`python .ci/bench.py [NAME ...] [--repeat N]` runs the files whose names contain a NAME.
"""

import argparse
import asyncio
import importlib
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "generated")]

if TYPE_CHECKING:
    from tests.load.row import ResultRow

LINE = "{:<44} {:>8} {:>8}  {:<6} {}"


def main() -> int:
    """Run the benchmarks; return 1 if one crashed, 0 otherwise."""
    arguments = _arguments()
    benches = _benches(arguments.names)
    print(LINE.format("name", "figure", "target", "", "notes"))
    results = [_rows(path) for path in benches for _ in range(arguments.repeat)]
    rows = [row for result in results for row in result or []]
    crashed = sum(result is None for result in results)
    below = sum(not row.ok for row in rows)
    print(f"\n{below} below their target, {crashed} crashed")
    _save(rows)
    return 1 if crashed else 0


def _save(rows: list["ResultRow"]) -> None:
    """Write the results to bench-results/, and draw the plots of all runs there."""
    results = importlib.import_module("tests.load.results")
    written = [results.save(rows), *results.plot()]
    print("\n".join(str(path.relative_to(ROOT)) for path in written))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="part of a file name; all files if none",
    )
    parser.add_argument("--repeat", type=int, default=1, metavar="N")
    return parser.parse_args()


def _benches(names: list[str]) -> list[Path]:
    paths = sorted((ROOT / "tests/load").glob("bench_*.py"))
    chosen = [p for p in paths if not names or any(n in p.stem for n in names)]
    return chosen or sys.exit(
        f"no benchmark matches; there are: {', '.join(p.stem for p in paths)}"
    )


def _rows(path: Path) -> list["ResultRow"] | None:
    """Run one benchmark and print its rows; return None if it crashed."""
    try:
        rows = _measure(importlib.import_module(f"tests.load.{path.stem}"))
    except Exception:
        traceback.print_exc()
        print(LINE.format(path.stem, "", "", "CRASH", "see above"), flush=True)
        return None
    for row in rows:
        figure = f"{row.figure:.2f}"
        target = "" if row.target is None else f"{row.target:.2f}"
        verdict = "ok" if row.ok else "BELOW"
        notes = f"{row.unit}; {row.notes}".strip("; ")
        print(LINE.format(row.name, figure, target, verdict, notes), flush=True)
    return rows


def _measure(benchmark: ModuleType) -> list["ResultRow"]:
    rows = benchmark.rows()
    if inspect.isawaitable(rows):
        rows = asyncio.run(_wait(rows))
    return list(rows)


async def _wait(rows: object) -> list["ResultRow"]:
    return await rows  # type: ignore[misc, no-any-return]  # loaded by path


if __name__ == "__main__":
    sys.exit(main())
