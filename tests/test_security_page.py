"""docs/security.md names files and tests that exist, and the embedded Postgres."""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.embedded.wheels import postgres_binaries

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/security.md").read_text()
ROW = re.compile(r"^\| (R\d+) \| .+ \| (.+) \|$", re.MULTILINE)
ASVS = re.compile(r"^\| (\d+\.\d+\.\d+) \| ([12]) \| (.+) \| (.+) \|$", re.MULTILINE)
NAMED = re.compile(r"`((?:\w+/)*[\w-]+\.(?:py|md|in|toml|proto))(?:::(\w+))?`")
ROWS = dict(ROW.findall(PAGE))
EMBEDDED = re.compile(r"^Embedded: Postgres (\d+\.\d+)", re.MULTILINE)
LEVELS = {"1": 70, "2": 183}  # requirements of ASVS 5.0.0


def docstrings(path: str) -> dict[str, str]:
    """Return the docstring of each function of a file, after that of its module."""
    tree = ast.parse((ROOT / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    module = ast.get_docstring(tree) or ""
    return {
        node.name: f"{module} {ast.get_docstring(node)}"
        for node in tree.body
        if isinstance(node, functions)
    }


def named_tests(row: str) -> Iterator[tuple[str, str]]:
    """Yield the path and name of each test in a row."""
    for path, name in NAMED.findall(row):
        if name:
            yield path, name


@pytest.mark.parametrize("number", range(1, 43))
def test_each_requirement_names_tests_that_mention_it(number: int) -> None:
    """Each has one row; every test in it exists and mentions the number."""
    name = f"R{number}"
    assert len(re.findall(rf"^\| {name} \|", PAGE, re.MULTILINE)) == 1
    tests = list(named_tests(ROWS[name]))
    assert tests
    for path, test in tests:
        assert re.search(rf"\b{name}\b", docstrings(path)[test]), f"{path}::{test}"


def test_every_asvs_requirement_has_one_outcome() -> None:
    """Each is listed once, as met, not met or not applicable."""
    requirements = ASVS.findall(PAGE)
    assert Counter(level for _, level, _, _ in requirements) == LEVELS
    assert len({number for number, *_ in requirements}) == len(requirements)
    assert {outcome for _, _, outcome, _ in requirements} == {"met", "not met", "n/a"}


def test_named_files_and_tests_exist() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 200
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert not name or name in docstrings(path), f"{path}::{name}"


def test_embedded_postgres_is_the_release_on_this_page(tmp_path: Path) -> None:
    """R42: an older one lacks fixes; after an update the page has to name it."""
    program = postgres_binaries(tmp_path) / "postgres"
    output = subprocess.check_output([program, "--version"], text=True)
    assert re.findall(r"\d+\.\d+", output)[-1:] == EMBEDDED.findall(PAGE)
