"""A Postgres from any installation, which can be copied, killed and promoted."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from server.embedded.postgres import account_for, shared_memory_option
from server.embedded.processes import isolation, run, stop

START_SECONDS = 60
USER = "blatam"
OPTIONS = ("--max_connections=100", "--timezone=UTC", "--log_error_verbosity=terse")
UNSAFE_OPTIONS = ("--fsync=off", "--synchronous_commit=off", "--full_page_writes=off")


@dataclass
class PostgresServer:
    """A server that listens on a socket in its folder, or on a TCP port if it has one.

    Every local connection is trusted. `options` are those of the program `postgres`.
    """

    binaries: Path
    folder: Path
    options: Sequence[str] = UNSAFE_OPTIONS
    port: int = 0
    account: dict[str, Any] | None = None
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "pgdata"

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database."""
        if self.port:
            return f"postgresql+asyncpg://{USER}@127.0.0.1:{self.port}/{database}"
        return f"postgresql+asyncpg://{USER}@/{database}?host={self.folder}"

    def initialise(self) -> None:
        """Create an empty data folder."""
        self._create_folder()
        self._run("initdb", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")

    def copy(self, primary: "PostgresServer") -> None:
        """Create the data folder of a replica of a running server."""
        self._create_folder()
        connection = f"host=127.0.0.1 port={primary.port} user={USER}"
        self._run("pg_basebackup", "-R", "-c", "fast", "--no-sync", "-d", connection)

    def start(self) -> None:
        """Start it; return once it accepts connections."""
        listening = ["--listen_addresses="]
        if self.port:
            listening = ["--listen_addresses=127.0.0.1", f"--port={self.port}"]
        command = [f"{self.binaries}/postgres", "-D", str(self.data), *listening]
        command += [f"--unix_socket_directories={self.folder}", shared_memory_option()]
        log = self.folder / "log"
        with log.open("ab") as sink:
            self.child = subprocess.Popen(
                [*command, *OPTIONS, *self.options],
                stdout=sink,
                stderr=sink,
                **isolation(signal.SIGINT, self.account),
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if self.child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Postgres did not start: {log.read_text()[-2000:]}")
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        """Return whether it accepts connections: line 8 of its PID file says so."""
        with suppress(OSError, IndexError):
            status = (self.data / "postmaster.pid").read_text().splitlines()[7]
            return status.strip() in ("ready", "standby")
        return False

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self.child:
            stop(self.child, signal.SIGINT)

    def kill(self) -> None:
        """End all its processes by SIGKILL."""
        assert self.child
        main = psutil.Process(self.child.pid)
        for process in [main, *main.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.child.wait()

    def promote(self) -> None:
        """Let a replica become a primary; return once it accepts writes."""
        self._run("pg_ctl", "promote", "-w")

    def _create_folder(self) -> None:
        self.account = account_for(self.data)
        self.folder.mkdir(mode=0o700)
        if self.account:
            os.chown(self.folder, self.account["user"], self.account["group"])

    def _run(self, program: str, *arguments: str) -> None:
        command = [f"{self.binaries}/{program}", *arguments, "-D", str(self.data)]
        if program == "initdb":
            command += ["-U", USER, "-A", "trust"]
        run(command, **isolation(signal.SIGKILL, self.account))
