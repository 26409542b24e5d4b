"""The experiments by row, each with a time bound."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.load.row import ResultRow

Run = Callable[[], Awaitable[list[ResultRow]]]


@dataclass(frozen=True, slots=True)
class Experiment:
    """One row of the table: what it runs, and after how many seconds it is ended."""

    row: str
    run: Run
    max_seconds: float


EXPERIMENTS: dict[str, Experiment] = {}


class Skipped(Exception):
    """This machine lacks something that the experiment needs."""


def experiment(row: str, max_seconds: float) -> Callable[[Run], Run]:
    """Register the function as the experiment of a row."""

    def register(run: Run) -> Run:
        assert row not in EXPERIMENTS
        EXPERIMENTS[row] = Experiment(row, run, max_seconds)
        return run

    return register


def at_most(
    name: str, figure: float, bar: float, unit: str = "", notes: str = ""
) -> ResultRow:
    """Return a row whose figure may not exceed its bar."""
    return ResultRow(name, figure, bar, better="lower", unit=unit, notes=notes)


def at_least(
    name: str, figure: float, bar: float, unit: str = "", notes: str = ""
) -> ResultRow:
    """Return a row whose figure must reach its bar."""
    return ResultRow(name, figure, bar, better="higher", unit=unit, notes=notes)


def exactly(
    name: str, figure: float, bar: float, unit: str = "", notes: str = ""
) -> ResultRow:
    """Return a row whose figure must equal its bar."""
    return ResultRow(name, figure, bar, better="equal", unit=unit, notes=notes)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that is not below `percent` of them."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]
