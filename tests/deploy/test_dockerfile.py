"""deploy/Dockerfile: what is in the image, who runs it, and that its sources exist."""

import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from typer.main import get_command

from server.cli.main import cli
from tests.deploy.images import (
    FOLDER,
    PINNED,
    Instruction,
    image_environment,
    stages,
)
from tests.deploy.named_settings import load_named
from tests.deploy.rules import ROOT

BASE, BUILD, IMAGE = stages()


def last(name: str) -> Instruction:
    return [i for i in IMAGE if i.name == name][-1]


def commands() -> list[str]:
    """Return the commands of the stage that builds."""
    runs = (i.text for i in BUILD if i.name == "RUN")
    return [command.strip() for text in runs for command in text.split("&&")]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    file = str(FOLDER / "Dockerfile")
    command = [str(hadolint), "--failure-threshold", "style", file]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stderr


def test_base_image_is_pinned_by_digest() -> None:
    """Both other stages are based on it; its Python is the one that tests run on."""
    image, _, name = BASE[0].words
    assert PINNED.fullmatch(image)
    assert "@sha256:" in image
    assert "-slim" in image
    major, minor = sys.version_info[:2]
    assert image.startswith(f"python:{major}.{minor}.")
    assert name == "base"
    assert [stage[0].words[0] for stage in (BUILD, IMAGE)] == ["base", "base"]


def test_only_locked_packages_are_installed() -> None:
    """Those that the service needs to run: the other locks stay outside."""
    installs = [command for command in commands() if " install " in command]
    into_image = [c for c in installs if "--python /opt/academy/bin/python" in c]
    locks = [re.findall(r"-r (\S+)", command) for command in into_image]
    assert locks == [["requirements.lock"], []]
    for command in installs:
        assert "--require-hashes" in command or "--no-index" in command, command
        assert "--only-binary :all:" in command or "--no-index" in command, command


def test_wheel_is_built_as_make_dist_builds_it() -> None:
    (command,) = [c for c in commands() if " wheel " in c]
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"-m pip (wheel .*)", makefile)
    options = re.compile(r"--(?!no-cache-dir)[a-z-]+")
    assert options.findall(command)
    assert options.findall(command) == options.findall(recipe)


def test_image_runs_the_service_without_a_shell_or_root() -> None:
    """Exec form: SIGTERM reaches the process."""
    user, group = last("USER").text.split(":")
    assert int(user) > 0
    assert int(group) > 0
    (program,) = json.loads(last("ENTRYPOINT").text)
    assert program == "academy"
    assert json.loads(last("CMD").text) == ["serve"]
    assert "serve" in get_command(cli).commands  # type: ignore[attr-defined]
    check = last("HEALTHCHECK").text.partition("CMD ")[2]
    assert json.loads(check) == ["python", "/opt/academy/healthcheck.py"]


def test_environment_of_the_image_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"DATABASE_URL_FILE": "database_url", "SECRET_KEY_FILE": "secret_key"}
    values = {"REDIS_URL": "redis://valkey", **files, **image_environment()}
    settings = load_named(values, tmp_path, monkeypatch)
    ports = {settings.grpc_listen[-5:], settings.http_listen[-4:]}
    assert set(last("EXPOSE").words) == ports


def sources() -> list[str]:
    """Return the files and folders that are copied from the repository."""
    copies = [i.words for i in BUILD if i.name == "COPY"]
    return [source for words in copies for source in words[:-1]]


@pytest.mark.parametrize("source", sources())
def test_copied_files_exist_and_reach_the_builder(source: str) -> None:
    assert list(ROOT.glob(source))
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    assert any(fnmatch(source, line.removeprefix("!")) for line in lines[1:])


def test_nothing_else_reaches_the_builder() -> None:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert allowed == set(sources())
