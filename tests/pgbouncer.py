"""A pgbouncer in transaction mode in front of the tests' Postgres."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy as sa

BINARY = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
START_SECONDS = 10
SERVER_CONNECTIONS = 3  # few, so that transactions of one client change connections


@contextmanager
def pgbouncer(
    database_url: str, server_connections: int = SERVER_CONNECTIONS
) -> Iterator[str]:
    """Run pgbouncer; yield a URL of the same database through it.

    There are at most `server_connections` for each database.
    """
    url = sa.make_url(database_url)
    with TemporaryDirectory(prefix="blatam-pgbouncer-", dir="/tmp") as name:
        folder, port = Path(name), _free_port()
        folder.chmod(0o755)
        configuration = _configuration(url, port, server_connections)
        (folder / "pgbouncer.ini").write_text(configuration)
        command = [str(BINARY), "-q", str(folder / "pgbouncer.ini")]
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(
                command, stdout=log, stderr=log, **_account(url)
            ) as process,
        ):
            try:
                _await_port(port, process, folder / "log")
                yield f"postgresql://{url.username}@127.0.0.1:{port}/{url.database}"
            finally:
                process.terminate()


def _configuration(url: sa.URL, port: int, server_connections: int) -> str:
    server = f"host={_host(url)} port={url.port or 5432} user={url.username}"
    if url.password:
        server += f" password={url.password}"
    return f"""
[databases]
* = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {server_connections}
max_client_conn = 1000
"""


def _host(url: sa.URL) -> str:
    return str(url.query.get("host") or url.host)


def _account(url: sa.URL) -> dict[str, Any]:
    """Return the account that may enter the socket of an embedded Postgres."""
    path = Path(_host(url))
    if os.geteuid() != 0 or not path.is_absolute():
        return {}
    owner = path.stat()
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"pgbouncer did not start: {log.read_text()[-2000:]}")
