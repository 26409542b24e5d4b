"""WorkerProcess: a worker as the supervisor sees it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

from server.cli.workers import control
from server.cli.workers.control import Assignment

WORKER_MODULE = "server.cli.workers.worker"


class WorkerProcess:
    """A process that waits for an assignment, serves, and ends.

    `listening` and `ready` are set when the worker reports so, `replaced` when it is to
    leave, and `ended` when the process has ended; `failure` is then the message of an
    error that a restart cannot fix.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        states: asyncio.StreamReader,
        commands: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._states = states
        self._commands = commands
        self.listening = asyncio.Event()
        self.ready = asyncio.Event()
        self.replaced = asyncio.Event()
        self.ended = asyncio.Event()
        self.failure = ""
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls,
        arguments: Sequence[str],
        http: socket.socket,
        module: str = WORKER_MODULE,
    ) -> WorkerProcess:
        """Start a new interpreter, which imports the application at once."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *interpreter(),
                    *("-m", module, *arguments),
                    *("--control", str(theirs.fileno()), "--http", str(http.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), http.fileno()),
                    start_new_session=True,  # Ctrl-C reaches the supervisor alone
                )
            states, commands = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()  # ends a process that has started
            raise
        return cls(process, states, commands)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_status(self) -> str:
        """How the process ended, for the log."""
        code = self._process.returncode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"

    @property
    def succeeded(self) -> bool:
        """Whether the process ended as asked: with 0, or before it could drain."""
        return self._process.returncode in (0, -signal.SIGTERM)

    def assign(self, assignment: Assignment) -> None:
        """Make the process a worker with this number."""
        self._commands.write(assignment.line())

    def replace(self) -> None:
        """Make the worker leave: another process serves in its place."""
        self.replaced.set()
        self._commands.write(control.REPLACED.encode() + b"\n")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; it has no effect on a process that has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def wait_until(
        self,
        state: asyncio.Event,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> bool:
        """Return whether the state is reached, in time and before the process ends."""
        waits = [asyncio.ensure_future(e.wait()) for e in (state, self.ended)]
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return state.is_set() and not self.ended.is_set()

    async def _watch(self) -> None:
        """Receive the states until the worker closes its end, then its exit code."""
        with suppress(OSError):
            async for line in self._states:
                state, message = json.loads(line)
                if state == control.LISTENING:
                    self.listening.set()
                elif state == control.READY:
                    self.ready.set()
                elif state == control.FAILED:
                    self.failure = message
        await self._process.wait()
        self._commands.close()
        self.ended.set()


def interpreter() -> list[str]:
    """Return the command of an interpreter that finds the modules that this one does.

    An installed `academy` must not import a folder `server` of the working directory.
    """
    return [sys.executable, *(["-P"] if sys.flags.safe_path else [])]
