"""The socket between the supervisor and a worker: one line for each message.

The supervisor sends an assignment, and later perhaps REPLACED. The worker sends its
states, or FAILED with a message. The end of the stream shows either side that the
other has ended, however it ended.
"""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import asdict, dataclass

LISTENING = "listening"
READY = "ready"
FAILED = "failed"
REPLACED = "replaced"
_CHUNK_SIZE = 4096  # bytes


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker process becomes: its number from 1, and its CPUs if pinned."""

    number: int
    cpus: tuple[int, ...] = ()

    def line(self) -> bytes:
        """Return the message."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Assignment:
        """Return the assignment of a message."""
        fields = json.loads(line)
        return cls(fields["number"], tuple(fields["cpus"]))


class SupervisorLink:
    """The worker's end of the socket."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self.stopped = asyncio.Event()  # replaced, or without a supervisor
        self.replaced = False

    def wait_for_assignment(self) -> Assignment | None:
        """Block until the supervisor assigns a number; None if it has ended."""
        line = b""
        while not line.endswith(b"\n"):
            if not (chunk := self._socket.recv(_CHUNK_SIZE)):
                return None
            line += chunk
        return Assignment.parse(line)

    def send(self, state: str, message: str = "") -> None:
        """Send a state, and a message that may have several lines."""
        try:
            self._socket.setblocking(True)
            self._socket.sendall(json.dumps([state, message]).encode() + b"\n")
        except OSError:  # the supervisor has ended: `stopped` says so
            return

    def watch(self) -> None:
        """Set `stopped` when the supervisor sends REPLACED or ends."""
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._receive)

    def _receive(self) -> None:
        try:
            message = self._socket.recv(_CHUNK_SIZE)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        self.replaced = bool(message)
        asyncio.get_running_loop().remove_reader(self._socket)
        self.stopped.set()
