"""The release before this one, as a wheel that is built from the history."""

import fcntl
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build/previous-release"
# Names a commit as long as there is no tag of a release.
COMMIT_FILE = Path(__file__).with_name("previous_release.txt")
# Not yet in the wheels of the first releases, which read them beside the packages.
DATA_FILES = ("contract.binpb", "service_config.json")


class NoPreviousRelease(Exception):
    """This copy of the repository lacks the history that the release is built from."""


def previous_release() -> Path:
    """Return a folder with the packages of the last release before this commit.

    It is built once. Raises NoPreviousRelease.
    """
    commit = _commit()
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        folder = BUILT / commit
        if not folder.exists():
            _build(commit, folder)
    return folder


def _commit() -> str:
    named = _git("describe", "--tags", "--abbrev=0", "HEAD^")
    name = named.decode().strip() or COMMIT_FILE.read_text().strip()
    commit = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if not commit:
        raise NoPreviousRelease(
            f"the previous release, {name}, is not in this clone "
            "(git fetch --tags --unshallow)"
        )
    return commit.decode().strip()


def _git(*arguments: str) -> bytes:
    """Return what git prints, nothing if it fails."""
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, check=False
        )
    except FileNotFoundError:
        return b""
    return b"" if result.returncode else result.stdout


def _build(commit: str, folder: Path) -> None:
    """Build the wheel of a commit and unpack it, or leave no folder."""
    with TemporaryDirectory(dir=BUILT) as name:
        source, wheels, fresh = (Path(name) / each for each in ("src", "whl", "new"))
        with tarfile.open(fileobj=io.BytesIO(_git("archive", commit))) as archive:
            archive.extractall(source, filter="data")
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-index",
        ]
        command += ["--no-build-isolation", "--disable-pip-version-check"]
        command += ["--wheel-dir", str(wheels), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as packages:
            packages.extractall(fresh)
        for file in DATA_FILES:
            if not any(fresh.rglob(file)):
                shutil.copy(source / "generated" / file, fresh)
        fresh.rename(folder)
