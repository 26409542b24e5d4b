"""A load client for calls whose body or token differs each time, over HTTP/1.1.

`python -m tests.load.peers.client` reads a plan as JSON and prints what it measured.
It works on sockets without a library, so that it uses little of the servers' cores.
"""

import json
import re
import selectors
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, from one connection per token, each a call at a time.

    In the body and the headers, $token is the token that the connection received
    last, $number one more in each call of the plan, and $caller the number of the
    connection.
    """

    address: str
    path: str
    body: str
    answer: str  # a pattern that each answer matches; its group is the next token
    tokens: list[str]
    status: int = 200
    first_number: int = 0
    calls: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What a plan took, the sizes of the answers, and the tokens for the next plan."""

    seconds: float
    smallest: int
    largest: int
    tokens: list[str]


class Connection:
    """A connection with one call at a time."""

    def __init__(self, plan: Plan, caller: int) -> None:
        host, port = plan.address.split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.token = plan.tokens[caller]
        self._answer = re.compile(plan.answer.encode())
        self._status = f"HTTP/1.1 {plan.status} ".encode()
        self._body = plan.body.replace("$caller", str(caller))
        fields = {"host": plan.address, "content-type": "application/json"}
        lines = [f"{name}: {value}" for name, value in (fields | plan.headers).items()]
        self._head = "\r\n".join([f"POST {plan.path} HTTP/1.1", *lines, ""])
        self._input = b""

    def send(self, number: int) -> None:
        """Send the next call."""
        body = self._body.replace("$token", self.token).replace("$number", str(number))
        head = self._head.replace("$token", self.token)
        length = f"content-length: {len(body)}\r\n\r\n"
        self.socket.sendall((head + length + body).encode())

    def receive(self) -> int | None:
        """Return the size of the answer, or None while it is not complete.

        Raises RuntimeError if its status or its content is not what the plan expects.
        """
        chunk = self.socket.recv(1 << 16)
        if not chunk:
            raise RuntimeError("the server has closed the connection")
        self._input += chunk
        head, separator, body = self._input.partition(b"\r\n\r\n")
        if not separator or not _complete(head, body):
            return None
        found = self._answer.search(body)
        if not head.startswith(self._status) or found is None:
            raise RuntimeError(f"unexpected answer: {self._input[:2000]!r}")
        self.token = found[1].decode() if found.re.groups else ""
        self._input = b""
        return len(body)


def _complete(head: bytes, body: bytes) -> bool:
    if length := LENGTH.search(head):
        return len(body) >= int(length[1])
    if CHUNKED.search(head):
        return body.endswith(LAST_CHUNK)
    raise RuntimeError(f"an answer without its length: {head!r}")


def drive(plan: Plan) -> Result:
    """Make all calls; each answer starts the connection's next one."""
    calls = plan.calls
    numbers = iter(range(plan.first_number, plan.first_number + calls))
    sizes: list[int] = []
    with ExitStack() as opened:
        selector = opened.enter_context(selectors.DefaultSelector())
        connections = [Connection(plan, caller) for caller in range(len(plan.tokens))]
        for connection in connections:
            opened.enter_context(connection.socket)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        started = time.perf_counter()
        for connection, number in zip(connections, numbers, strict=False):
            connection.send(number)
        while len(sizes) < calls:
            for key, _ in selector.select():
                if (size := key.data.receive()) is None:
                    continue
                sizes.append(size)
                for number in islice(numbers, 1):
                    key.data.send(number)
        seconds = time.perf_counter() - started
    tokens = [connection.token for connection in connections]
    return Result(seconds, min(sizes), max(sizes), tokens)


if __name__ == "__main__":
    print(json.dumps(asdict(drive(Plan(**json.load(sys.stdin))))))  # noqa: T201
