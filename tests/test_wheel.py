"""The wheel of `make dist` serves without the repository and the embedded servers."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.processes import serving

ROOT = Path(__file__).parents[1]
PACKAGES = {"server": "server", "edge": "edge"} | {
    name: f"generated/{name}" for name in ("blatam", "buf", "batching")
}
NOT_NEEDED = {".mako"}  # the template of a new migration
BUILD = "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"
# Importing the embedded servers fails; with several workers, too.
SERVE = """
import sys
sys.modules["server.embedded"] = None
import server.cli.workers.__main__, server.cli.workers.worker
from server.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: a build writes into the folder of the source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for path in (ROOT / "pyproject.toml", *ROOT.glob("requirements*.in")):
        shutil.copy(path, source)
    for name in ("server", "edge", "generated"):
        caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=caches)
    # The hook that pip calls; pip itself takes three times as long.
    command = [sys.executable, "-c", BUILD, str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_every_file_of_its_packages(wheel: Path) -> None:
    """The contract, the service config and the migrations are among them."""
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
    expected = {
        f"{name}/{path.relative_to(ROOT / folder)}"
        for name, folder in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.suffix not in NOT_NEEDED
    }
    assert {"blatam/contract.binpb", "blatam/service_config.json"} < expected
    assert {name for name in files if ".dist-info/" not in name} == expected


async def test_wheel_serves_from_an_empty_folder(
    wheel: Path, tmp_path: Path, database_url: str, redis_url: str
) -> None:
    """Beside the locked dependencies, without .pth files: no editable install."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    settings = {
        "PYTHONPATH": f"{site}:{sysconfig.get_path('purelib')}",
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": "0123456789abcdef" * 2,
        "DEBUG": "1",
    }
    command = [sys.executable, "-S", "-c", SERVE, "serve"]
    async with (
        serving(settings, command, empty) as academy,
        httpx.AsyncClient(base_url=academy.rest) as http,
    ):
        document = (await http.get("/openapi.json")).json()
        assert "/api/v1/users" in document["paths"]
        assert not list(empty.iterdir())
