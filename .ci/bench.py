"""Run tests/load/bench_*.py and print one table; a figure below its bar is no failure.

`python .ci/bench.py [NAME ...] [--repeat N]` runs the files whose names hold a NAME.
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
    from tests.load.row import Row

LINE = "{:<44} {:>8} {:>8}  {:<6} {}"


def main() -> int:
    """Run what was asked for; 1 when a bench crashed, 0 otherwise."""
    asked = _arguments()
    benches = _benches(asked.names)
    print(LINE.format("name", "figure", "bar", "", "notes"))
    below = crashed = 0
    for path in benches:
        for _ in range(asked.repeat):
            rows = _rows(path)
            crashed += rows is None
            below += sum(not row.ok for row in rows or [])
    print(f"\n{below} below the bar, {crashed} crashed")
    return 1 if crashed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a file name")
    parser.add_argument("--repeat", type=int, default=1, metavar="N")
    return parser.parse_args()


def _benches(names: list[str]) -> list[Path]:
    found = sorted((ROOT / "tests/load").glob("bench_*.py"))
    chosen = [p for p in found if not names or any(n in p.stem for n in names)]
    return chosen or sys.exit(f"no bench among {[p.stem for p in found]} is meant")


def _rows(path: Path) -> list["Row"] | None:
    """Print the rows of one bench as they are there; None when it crashed."""
    try:
        rows = _measure(importlib.import_module(f"tests.load.{path.stem}"))
    except Exception:
        traceback.print_exc()
        print(LINE.format(path.stem, "", "", "CRASH", "see above"), flush=True)
        return None
    for row in rows:
        figure, bar = f"{row.figure:.2f}", f"{row.bar:.2f}"
        verdict = "ok" if row.ok else "BELOW"
        told = f"{row.unit}; {row.notes}".strip("; ")
        print(LINE.format(row.name, figure, bar, verdict, told), flush=True)
    return rows


def _measure(bench: ModuleType) -> list["Row"]:
    rows = bench.rows()
    if inspect.isawaitable(rows):
        rows = asyncio.run(_wait(rows))
    return list(rows)


async def _wait(rows: object) -> list["Row"]:
    return await rows  # type: ignore[misc, no-any-return]  # loaded by path


if __name__ == "__main__":
    sys.exit(main())
