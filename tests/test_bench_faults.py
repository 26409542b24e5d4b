"""`make bench-faults`: every row has an experiment, and one fault ends one row only."""

import asyncio
import importlib.util
import math
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.load.faults.experiment import Experiment, Skipped, at_most, exactly
from tests.load.row import ResultRow

ROOT = Path(__file__).parents[1]
ROWS = {f"L{number}" for number in range(1, 26)}


def load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "bench_faults", ROOT / ".ci/bench_faults.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def succeed() -> list[ResultRow]:
    return [at_most("delay", 3, 5, "s"), at_most("delay", 7, 5, "s")]


async def crash() -> list[ResultRow]:
    raise RuntimeError("no Postgres")


async def hang() -> list[ResultRow]:
    await asyncio.Event().wait()
    return []


async def skip() -> list[ResultRow]:
    raise Skipped("libfaketime is not installed")


def test_every_row_has_an_experiment_and_a_figure() -> None:
    assert load_runner()._experiments().keys() == ROWS
    figures = (ROOT / "docs/reliability.md").read_text()
    assert set(re.findall(r"^\| (L\d+) \|", figures, re.MULTILINE)) == ROWS


def test_runner_reports_each_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    """A crash and an experiment that exceeds its time do not end the run."""
    runner = load_runner()
    for run in (succeed, crash, hang, skip):
        runner._print_rows(Experiment("L1", run, 0.1))
    output = capsys.readouterr()
    verdicts = [line.split()[:5] for line in output.out.splitlines()]
    assert verdicts == [
        ["L1", "delay", "3.00", "5.00", "ok"],
        ["L1", "delay", "7.00", "5.00", "BELOW"],
        ["L1", "CRASH", "RuntimeError:", "no", "Postgres"],
        ["L1", "CRASH", "not", "finished", "after"],
        ["L1", "skipped:", "libfaketime", "is", "not"],
    ]
    assert "RuntimeError" in output.err


def test_row_compares_figure_with_bar() -> None:
    assert exactly("tokens", 1, 1).ok
    assert not exactly("tokens", 0, 1).ok
    assert at_most("failed", 7, math.inf).ok
