"""docs/security.md says nothing of tests that is not so."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/security.md").read_text()
ROW = re.compile(r"^\| (R\d+) \| .+ \| (.+) \|$", re.MULTILINE)
ASVS = re.compile(r"^\| (\d+\.\d+\.\d+) \| ([12]) \| (.+) \| (.+) \|$", re.MULTILINE)
NAMED = re.compile(r"`((?:\w+/)*[\w-]+\.(?:py|md|in|toml|proto))(?:::(\w+))?`")
ROWS = dict(ROW.findall(PAGE))
LEVELS = {"1": 70, "2": 183}  # requirements of ASVS 5.0.0


def told(path: str) -> dict[str, str]:
    """Give a file's functions, each with what it says and what its module says."""
    tree = ast.parse((ROOT / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    module = ast.get_docstring(tree) or ""
    return {
        node.name: f"{module} {ast.get_docstring(node)}"
        for node in tree.body
        if isinstance(node, functions)
    }


def named_tests(row: str) -> Iterator[tuple[str, str]]:
    """Give the path and name of each test in a row."""
    for path, name in NAMED.findall(row):
        if name:
            yield path, name


@pytest.mark.parametrize("number", range(1, 43))
def test_each_requirement_names_tests_that_bear_it(number: int) -> None:
    """One row each; every test in it is there, and says the number."""
    name = f"R{number}"
    assert len(re.findall(rf"^\| {name} \|", PAGE, re.MULTILINE)) == 1
    found = list(named_tests(ROWS[name]))
    assert found
    for path, test in found:
        assert re.search(rf"\b{name}\b", told(path)[test]), f"{path}::{test}"


def test_every_requirement_of_asvs_is_answered() -> None:
    """Each once, with its level, as met, not met or not applicable."""
    found = ASVS.findall(PAGE)
    assert Counter(level for _, level, _, _ in found) == LEVELS
    assert len({number for number, *_ in found}) == len(found)
    assert {outcome for _, _, outcome, _ in found} == {"met", "not met", "n/a"}


def test_what_is_named_is_there() -> None:
    """Every file, and every test in it."""
    named = NAMED.findall(PAGE)
    assert len(named) > 200
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert not name or name in told(path), f"{path}::{name}"
