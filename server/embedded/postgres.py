"""What Postgres wants before it starts, and how it says that it has."""

import os
import pwd
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from server.embedded.processes import EmbeddedServerError, isolated, run

CREATE_DATABASE = r"""
select format('create database %I', :'name')
 where not exists (select from pg_database where datname = :'name') \gexec
"""
POSTGRES_OPTIONS = ["--listen_addresses=", "--unix_socket_permissions=0700"]
POSTGRES_OPTIONS += ["--shared_buffers=64MB", "--max_connections=100", "--timezone=UTC"]
# without the DETAIL line, which holds the values of a row
POSTGRES_OPTIONS += ["--log_error_verbosity=terse", "--log_min_error_statement=panic"]
FORGETFUL = ["--fsync=off", "--synchronous_commit=off", "--full_page_writes=off"]


def account_for(data: Path) -> dict[str, Any] | None:
    """Give the account for Postgres, which refuses to run as root.

    Data that is there keeps its owner, so that root may start what a user began.
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
        "Postgres does not run as root and this system has neither the account "
        "`postgres` nor `nobody`: run as another user, or set DATABASE_URL"
    )


def initialise(
    binaries: Path, data: Path, account: dict[str, Any] | None, *, durable: bool
) -> None:
    """Make the data folder unless it is there; a kill midway leaves none."""
    if (data / "PG_VERSION").exists():
        return
    fresh = data.with_name("pgdata.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if account:
        os.chown(fresh, account["user"], account["group"])
    # The builtin provider sorts and folds the same on every system. Whoever can
    # enter the socket's folder is the owner (or root), so no password is asked.
    options = ["--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"]
    options += ["--auth-local=trust", "--auth-host=reject"]
    options += [] if durable else ["--no-sync"]
    command = [f"{binaries}/initdb", "-D", str(fresh), "-U", "blatam", *options]
    run(command, **isolated(signal.SIGKILL, account))
    fresh.rename(data)


def create_database(binaries: Path, sockets: Path, database: str) -> None:
    """Make the database unless it is there."""
    command = [f"{binaries}/psql", "-Xq", "-h", str(sockets), "-U", "blatam"]
    command += ["-d", "postgres", "-v", "ON_ERROR_STOP=1", "-v", f"name={database}"]
    run(command, CREATE_DATABASE, **isolated(signal.SIGKILL, None))


def shared_memory() -> str:
    """Give the option that says where shared memory is."""
    # A container may come without a /dev/shm that the account may write to.
    posix = os.access("/dev/shm", os.W_OK)  # noqa: S108 - looked at, not used
    return f"--dynamic_shared_memory_type={'posix' if posix else 'mmap'}"


def accepts(child: subprocess.Popen[bytes], data: Path) -> bool:
    """Tell by the eighth line of the PID file whether this Postgres is ready."""
    with suppress(OSError, IndexError):
        lines = (data / "postmaster.pid").read_text().splitlines()
        return lines[0] == str(child.pid) and lines[7].strip() == "ready"
    return False
