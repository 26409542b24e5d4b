"""Prepares the data folder of Postgres, and tells when it accepts connections."""

import os
import pwd
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from server.embedded.processes import EmbeddedServerError, isolation, run

CREATE_DATABASE = r"""
select format('create database %I', :'name')
 where not exists (select from pg_database where datname = :'name') \gexec
"""
POSTGRES_OPTIONS = ["--listen_addresses=", "--unix_socket_permissions=0700"]
POSTGRES_OPTIONS += ["--shared_buffers=64MB", "--max_connections=100", "--timezone=UTC"]
# without the DETAIL line, which contains values of a row
POSTGRES_OPTIONS += ["--log_error_verbosity=terse", "--log_min_error_statement=panic"]
UNSAFE_OPTIONS = ["--fsync=off", "--synchronous_commit=off", "--full_page_writes=off"]


def account_for(data: Path) -> dict[str, Any] | None:
    """Return the account for Postgres, which refuses to run as root.

    An existing data folder keeps its owner, so that root can start what a user made.
    """
    if os.geteuid() != 0:
        return None
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise EmbeddedServerError(
        "Postgres cannot run as root, and this system has no `postgres` or `nobody` "
        "account to run it: run as another user, or set DATABASE_URL"
    )


def check_data_version(data: Path, version: str) -> None:
    """Raise EmbeddedServerError if another major version wrote this data folder.

    `version` is that of the installed Postgres, such as 18.6.
    """
    try:
        written_by = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return
    installed = version.partition(".")[0]
    if written_by != installed:
        raise EmbeddedServerError(
            f"{data} was written by Postgres {written_by}, and Postgres {installed} of "
            "this installation cannot read it; nothing was changed. Install the "
            "release of the academy that wrote it, or move the data by dump and "
            "restore: docs/operations.md, section Another major version of Postgres"
        )


def initialise(
    binaries: Path, data: Path, account: dict[str, Any] | None, *, durable: bool
) -> None:
    """Create the data folder unless it exists; an interrupted run leaves none."""
    if (data / "PG_VERSION").exists():
        return
    fresh = data.with_name("pgdata.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if account:
        os.chown(fresh, account["user"], account["group"])
    # The builtin provider sorts and folds case alike on every system. Only the owner
    # and root can enter the folder of the socket, so there is no password.
    options = ["--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"]
    options += ["--auth-local=trust", "--auth-host=reject"]
    options += [] if durable else ["--no-sync"]
    command = [f"{binaries}/initdb", "-D", str(fresh), "-U", "blatam", *options]
    run(command, **isolation(signal.SIGKILL, account))
    fresh.rename(data)


def create_database(binaries: Path, sockets: Path, database: str) -> None:
    """Create the database unless it exists."""
    command = [f"{binaries}/psql", "-Xq", "-h", str(sockets), "-U", "blatam"]
    command += ["-d", "postgres", "-v", "ON_ERROR_STOP=1", "-v", f"name={database}"]
    run(command, CREATE_DATABASE, **isolation(signal.SIGKILL, None))


def shared_memory_option() -> str:
    """Return the option for the kind of shared memory that this system has."""
    # In some containers /dev/shm is missing or read-only.
    posix = os.access("/dev/shm", os.W_OK)  # noqa: S108 - checked, not used
    return f"--dynamic_shared_memory_type={'posix' if posix else 'mmap'}"


def is_ready(child: subprocess.Popen[bytes], data: Path) -> bool:
    """Return whether this Postgres is ready: line 8 of its PID file says so."""
    with suppress(OSError, IndexError):
        lines = (data / "postmaster.pid").read_text().splitlines()
        return lines[0] == str(child.pid) and lines[7].strip() == "ready"
    return False
