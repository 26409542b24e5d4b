"""Look up published advisories for the packages of the lock files.

`python .ci/audit.py PIP_AUDIT [LOCK ...]`, by default with every lock file. Exits with
1 if an advisory applies, if a package was not looked up, or if no source answers. A
source that knows no package at all, such as a mirror without advisories, is no answer.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SOURCES = ("pypi", "osv")
NOT_AUDITED = "no source of advisories answers: NOTHING WAS AUDITED"


def main(pip_audit: str, locks: list[str]) -> None:
    """Print what was found; exit with 1 if that is not nothing."""
    names = locks or sorted(map(str, ROOT.glob("requirements*.lock")))
    for source in SOURCES:
        if packages := _packages(pip_audit, source, names):
            findings = sorted(set(_findings(packages)))
            print(f"{len(packages)} packages in {len(names)} lock files, by {source}")
            sys.exit("\n".join(findings) if findings else 0)
    sys.exit(NOT_AUDITED)


def _packages(pip_audit: str, source: str, names: list[str]) -> list[dict[str, Any]]:
    """Return the packages of all locks with their advisories; none if unanswered."""
    packages = []
    for name in names:
        report = _report(pip_audit, source, name)
        if report is None:
            return []
        packages += report
    if all(map(_skip_reason, packages)):
        print(f"{source}: knows none of the packages", file=sys.stderr)
        return []
    return packages


def _report(pip_audit: str, source: str, lock: str) -> list[dict[str, Any]] | None:
    """Return the packages of a lock with their advisories; None without an answer."""
    command = [pip_audit, "-s", source, "-r", lock, "--require-hashes", "--disable-pip"]
    command += ["-f", "json", "--progress-spinner", "off", "--aliases", "on"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"{source}: {lock}: {result.stderr.strip()[-500:]}", file=sys.stderr)
        return None
    return packages


def _skip_reason(package: dict[str, Any]) -> str:
    return str(package.get("skip_reason", ""))


def _findings(packages: list[dict[str, Any]]) -> Iterator[str]:
    for package in packages:
        if reason := _skip_reason(package):
            yield f"{package['name']} was not looked up: {reason}"
        for advisory in package.get("vulns", []):
            names = ", ".join([advisory["id"], *advisory["aliases"]])
            fixed = ", ".join(advisory["fix_versions"]) or "no release"
            yield f"{package['name']} {package['version']}: {names}; fixed in {fixed}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
