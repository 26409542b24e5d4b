"""docs/operations.md names what exists: metrics, commands, files."""

import re

from typer.main import get_command

from server.cli.main import cli
from server.observability.metrics.definitions import DEFINITIONS
from tests.deploy.rules import ROOT

PAGE = (ROOT / "docs/operations.md").read_text()


def test_page_explains_every_metric_and_no_other() -> None:
    rows = re.findall(r"^\| `((?:academy|grpc|http)_\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(DEFINITIONS)


def test_commands_of_the_page_exist() -> None:
    commands = get_command(cli).commands  # type: ignore[attr-defined]
    named = set(re.findall(r"(?:`|^)academy (\w+)", PAGE, re.MULTILINE))
    assert named
    assert named <= commands.keys()


def test_files_of_the_page_exist() -> None:
    files = re.findall(r"`((?:deploy|docs|proto)/[\w./-]+)`", PAGE)
    assert files
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_links_of_the_page_lead_to_headings() -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
