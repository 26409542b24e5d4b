"""docs/operations.md names what exists: metrics, commands, files."""

import re

from typer.main import get_command

from server.cli.main import cli
from server.cli.workers.running import DRAIN_TIMEOUT
from server.composition.listeners.serving import STOP_TIMEOUT_SECONDS
from server.config import Settings
from server.observability.metrics.definitions import DEFINITIONS
from server.observability.tracing.sdk import FLUSH_TIMEOUT_SECONDS
from server.store.pool.driver import CLOSE_WAIT_SECONDS
from server.workers.outbox_dispatcher import DRAIN_TIMEOUT_SECONDS
from tests.deploy.rules import ROOT

PAGE = (ROOT / "docs/operations.md").read_text()


def test_page_explains_every_metric_and_no_other() -> None:
    rows = re.findall(r"^\| `((?:academy|grpc|http)_\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(DEFINITIONS)


def test_commands_of_the_page_exist() -> None:
    commands = get_command(cli).commands  # type: ignore[attr-defined]
    named = set(re.findall(r"(?:`|^)academy ([a-z-]+)", PAGE, re.MULTILINE))
    assert named
    assert named <= commands.keys()


def test_files_of_the_page_exist() -> None:
    files = re.findall(r"`((?:deploy|docs|proto)/[\w./-]+)`", PAGE)
    assert files
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_grace_periods_of_the_page_cover_the_drain() -> None:
    """Each limit is longer than the sum of what it waits for."""
    calls, delivery = STOP_TIMEOUT_SECONDS, DRAIN_TIMEOUT_SECONDS
    closing = CLOSE_WAIT_SECONDS * Settings().database_pool_size
    workers = DRAIN_TIMEOUT.total_seconds()
    assert calls + delivery + closing + FLUSH_TIMEOUT_SECONDS < workers
    text = " ".join(PAGE.split())
    assert f"the running calls finish, for at most {calls:.0f} s" in text
    assert f"is sending, for at most {delivery:.0f} s" in text
    assert f"After `LAME_DUCK` this takes at most {workers:.0f} s" in text
    (grace,) = re.findall(r"at least `LAME_DUCK` \+ (\d+) s", text)
    assert float(grace) >= workers + 5  # the supervisor itself has to end as well


def test_links_of_the_page_lead_to_headings() -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors


def commands_of(heading: str) -> str:
    """Return the first commands of a section."""
    pattern = rf"^##+ {heading}$.*?^```sh\n(.*?)^```"
    (commands,) = re.findall(pattern, PAGE, re.DOTALL | re.MULTILINE)
    return str(commands)


def test_processes_behind_a_proxy_start_in_the_shell_of_the_page() -> None:
    """They share no listener of it, and serve the plaintext that the proxy expects."""
    exported = set(re.findall(r"(\w+)=", commands_of("Start")))
    behind = commands_of("Reverse proxy")
    (unset,) = re.findall(r"^unset (.*)$", behind, re.MULTILINE)
    assert set(unset.split()) == {name for name in exported if name.startswith("TLS_")}
    processes = re.findall(r"^(.*) academy serve &$", behind, re.MULTILINE)
    listeners = [dict(p.split("=") for p in line.split()) for line in processes]
    for names in listeners:
        assert names.keys() == {n for n in exported if n.endswith("_LISTEN")}
    addresses = [address for names in listeners for address in names.values()]
    assert len(set(addresses)) == len(addresses) == 6
