"""The steps of deploy/Dockerfile, run in a folder instead of a container."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import open_folder
from tests.deploy.images import Instruction, image_environment, stages
from tests.deploy.rules import ROOT
from tests.load.service import free_address

_, BUILD, IMAGE = stages()
START_SECONDS = 60
STOP_SECONDS = 30
PREFIX = "/opt/academy"
NOBODY_LISTENS = "127.0.0.1:1"
pytestmark = pytest.mark.skipif(
    "TEST_IMAGE" not in os.environ,
    reason="installs all packages, which takes a minute: run make test-deploy",
)


class Builder:
    """Runs the instructions of a stage below a folder, which stands for `/`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._work = root
        base = root / "base"  # the Python of the base image, which has pip
        subprocess.run([sys.executable, "-m", "venv", base], check=True)
        self._path = f"{base / 'bin'}:{os.environ['PATH']}"

    def run(self, instruction: Instruction) -> None:
        getattr(self, f"_{instruction.name.lower()}")(instruction)

    def _workdir(self, instruction: Instruction) -> None:
        self._work = self._inside(instruction.text)
        self._work.mkdir(parents=True)

    def _copy(self, instruction: Instruction) -> None:
        *sources, target = instruction.words
        folder = self._inside(target) if target.startswith("/") else self._work / target
        for source in sources:
            for path in ROOT.glob(source):
                if path.is_dir():
                    shutil.copytree(path, folder, ignore=_no_caches)
                else:
                    shutil.copy(path, folder)

    def _run(self, instruction: Instruction) -> None:
        script = instruction.text.replace(PREFIX, str(self._inside(PREFIX)))
        environment = {"PATH": self._path, "HOME": str(self._root)}
        command = ["sh", "-ec", script]
        subprocess.run(command, cwd=self._work, env=environment, check=True)

    def _inside(self, path: str) -> Path:
        return self._root / path.lstrip("/")


def _no_caches(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__"}


def test_image_serves_without_root_and_without_a_writable_folder() -> None:
    """The health check succeeds while Postgres is unavailable, and SIGTERM ends it."""
    with open_folder() as root:
        builder = Builder(root)
        for instruction in BUILD[1:]:
            builder.run(instruction)
        prefix = root / PREFIX.lstrip("/")
        names = {path.name.lower() for path in prefix.glob("lib/*/site-packages/*")}
        assert not [name for name in names if "postgres" in name or "valkey" in name]
        serve_and_stop(prefix)


def serve_and_stop(prefix: Path) -> None:
    """Start the command of the image as its user, check its health, and stop it."""
    environment = {
        **image_environment(),
        "PATH": f"{prefix / 'bin'}:{os.environ['PATH']}",
        "GRPC_LISTEN": free_address(),
        "HTTP_LISTEN": free_address(),
        "DATABASE_URL": f"postgresql://academy@{NOBODY_LISTENS}/academy",
        "REDIS_URL": f"redis://{NOBODY_LISTENS}",
        "SECRET_KEY": "0123456789abcdef" * 4,
    }
    (program,), arguments = (
        next(i.words for i in IMAGE if i.name == name) for name in ("ENTRYPOINT", "CMD")
    )
    command = [*_as_user_of_image(), str(prefix / "bin" / program), *arguments]
    check = [str(prefix / "bin/python"), str(prefix / "healthcheck.py")]
    with subprocess.Popen(command, cwd="/", env=environment) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while subprocess.run(check, env=environment, check=False).returncode:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
            process.terminate()
            assert process.wait(STOP_SECONDS) == 0
        finally:
            process.kill()


def _as_user_of_image() -> list[str]:
    """Return what runs a command as the user of the image, if this user may do that.

    It may read everything, because Python may be in a home folder; it writes nothing
    outside /tmp, as in a container with a read-only root file system.
    """
    if os.geteuid() != 0:
        return []
    user, group = next(i.text for i in IMAGE if i.name == "USER").split(":")
    rights = "-all,+dac_read_search"
    account = [f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    return [
        *("setpriv", *account, f"--inh-caps={rights}"),
        *(f"--ambient-caps={rights}", f"--bounding-set={rights}"),
    ]
