"""The software inventory lists exactly the locked packages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
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
