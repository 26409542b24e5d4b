"""Run tests/e2e and tests/rpc in each environment, then the promotion of a replica.

`python .ci/test_matrix.py [ENVIRONMENT ...]` runs those named. A Debian package that is
missing is installed if this is root, and otherwise named. The output of an environment
is in build/test-matrix/.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "generated")]
OUTPUT = ROOT / "build/test-matrix"
TESTS = ("tests/e2e", "tests/rpc")
PROCESSES = "2"
FAILOVER = "failover"  # an experiment, which has a primary and a replica of its own
LINE = "{:<16} {:>6} {:>6} {:>7} {:>7}  {}"


def main() -> int:
    """Run the environments; return 1 if a test failed, 0 otherwise."""
    from tests.environments import ENVIRONMENTS

    names = [*ENVIRONMENTS, FAILOVER]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ENVIRONMENT", help="all if none")
    named = parser.parse_args().names or names
    if unknown := sorted({*named} - {*names}):
        sys.exit(f"no such environment: {', '.join(unknown)}; there are {names}")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    header = LINE.format("environment", "passed", "failed", "skipped", "seconds", "")
    print(header.rstrip(), flush=True)
    results = []
    for name in named:
        if name == FAILOVER:
            results.append(_run_failover())
        elif missing := _missing(
            ENVIRONMENTS[name].program, ENVIRONMENTS[name].package
        ):
            print(LINE.format(name, "", "", "", "", f"not run: {missing}"), flush=True)
        else:
            results.append(_run_tests(name))
    return 0 if all(results) else 1


def _missing(program: Path, package: str) -> str:
    """Install a program if it is missing; return what to do if that is not possible."""
    if program.exists():
        return ""
    install = ["apt-get", "install", "-y", "-q", package]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        with (OUTPUT / f"{package}.log").open("wb") as log:
            subprocess.run(install, stdout=log, stderr=log, check=False)
    return "" if program.exists() else f"{program} is missing ({' '.join(install)})"


def _run_tests(name: str) -> bool:
    """Run the tests in an environment and print a line; return whether all passed."""
    report, log = OUTPUT / f"{name}.xml", OUTPUT / f"{name}.log"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-n", PROCESSES, *TESTS]
    started = time.monotonic()
    with log.open("wb") as sink:
        subprocess.run(
            [*command, f"--junitxml={report}"],
            cwd=ROOT,
            env={**os.environ, "TEST_ENVIRONMENT": name},
            stdout=sink,
            stderr=sink,
            check=False,
        )
    seconds = f"{time.monotonic() - started:.0f}"
    if not report.exists():
        print(LINE.format(name, "", "", "", seconds, f"crashed: see {log}"), flush=True)
        return False
    (suite,) = ET.parse(report).getroot().iter("testsuite")  # noqa: S314 - our own
    total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    note = f"see {log}" if failed else ""
    figures = (total - failed - skipped, failed, skipped, seconds)
    print(LINE.format(name, *figures, note).rstrip(), flush=True)
    return failed == 0 and total > skipped


def _run_failover() -> bool:
    """Kill a primary, promote its replica; return whether no bar was missed."""
    command = [sys.executable, str(ROOT / ".ci/bench_faults.py"), "L25"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(f"\n{result.stdout}{result.stderr if result.returncode else ''}", flush=True)
    return result.returncode == 0 and "BELOW" not in result.stdout


if __name__ == "__main__":
    sys.exit(main())
