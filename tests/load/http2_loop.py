"""A load client for gRPC that uses a tenth of the server's CPU, without a library.

`python -m tests.load.http2_loop` reads and prints what tests/load/closed_loop.py does.
It writes prepared HTTP/2 frames (RFC 9113) and reads of the responses only the frame
headers; header fields are literals, so that there is no HPACK state (RFC 7541 6.2.2).
"""

import json
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW = 65_535  # bytes that a client may send before the first update
MAX_WINDOW = 2**31 - 1
GRPC_PREFIX = struct.Struct(">BI")
FRAME_HEADER = struct.Struct(">HBBBI")  # length in 24 bits, type, flags, stream


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    size = len(payload)
    return FRAME_HEADER.pack(size >> 8, size & 255, kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """Return a header field as a literal that is not indexed."""
    return b"\0" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    data, size = text.encode(), bytearray()
    rest = len(data)
    if rest < 127:
        size.append(rest)
    else:  # an integer with a prefix of 7 bits (RFC 7541 5.1)
        size.append(127)
        rest -= 127
        while rest >= 128:
            size.append(rest % 128 + 128)
            rest //= 128
        size.append(rest)
    return bytes(size) + data


class Connection:
    """One connection with a number of calls at a time."""

    def __init__(self, plan: dict[str, object]) -> None:
        target = urlsplit(str(plan["url"]))
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": target.path,
            ":authority": target.netloc,
            "content-type": "application/grpc",
            "te": "trailers",
        }
        headers = plan["headers"]
        assert isinstance(headers, dict)
        self._head = b"".join(literal(*f) for f in (fields | headers).items())
        message = bytes.fromhex(str(plan["message"]))
        self._body = GRPC_PREFIX.pack(0, len(message)) + message
        self.socket = socket.create_connection((target.hostname, target.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        window = struct.pack(">HI", 4, MAX_WINDOW)  # SETTINGS_INITIAL_WINDOW_SIZE
        increment = struct.pack(">I", MAX_WINDOW - INITIAL_WINDOW)
        self._output = PREFACE + frame(SETTINGS, 0, 0, window)
        self._output += frame(WINDOW_UPDATE, 0, 0, increment)
        self._input = b""
        self._next_stream = 1
        self._window = INITIAL_WINDOW
        self.waiting = 0  # calls to start
        self.received = 0  # bytes of messages

    def flush(self) -> None:
        """Start the calls that wait, as far as the window allows, and send."""
        parts = [self._output]
        while self.waiting and self._window >= len(self._body):
            parts.append(frame(HEADERS, END_HEADERS, self._next_stream, self._head))
            parts.append(frame(DATA, END_STREAM, self._next_stream, self._body))
            self._next_stream += 2
            self._window -= len(self._body)
            self.waiting -= 1
        self._output = b""
        self.socket.sendall(b"".join(parts))

    def read(self) -> int:
        """Receive once; return how many calls have ended."""
        chunk = self.socket.recv(1 << 18)
        if not chunk:
            raise RuntimeError("the server has closed the connection")
        self._input += chunk
        return sum(
            self._accept(kind, flags, payload)
            for kind, flags, payload in self._frames()
        )

    def _frames(self) -> Iterator[tuple[int, int, bytes]]:
        data, position = self._input, 0
        while len(data) - position >= FRAME_HEADER.size:
            high, low, kind, flags, _ = FRAME_HEADER.unpack_from(data, position)
            end = position + FRAME_HEADER.size + (high << 8 | low)
            if end > len(data):
                break
            yield kind, flags, data[position + FRAME_HEADER.size : end]
            position = end
        self._input = data[position:]

    def _accept(self, kind: int, flags: int, payload: bytes) -> int:
        """Process a frame; return 1 if it ends a call."""
        if kind == DATA:
            self.received += len(payload) - GRPC_PREFIX.size
        elif kind == HEADERS:
            return flags & END_STREAM
        elif kind in (RST_STREAM, GOAWAY):
            raise RuntimeError(f"the server ended calls: {payload!r}")
        elif kind == WINDOW_UPDATE:
            self._window += int.from_bytes(
                payload
            )  # updates of streams are of ended ones
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self._output += frame(kind, ACK, 0, payload if kind == PING else b"")
        return 0


def drive(plan: dict[str, object]) -> dict[str, float]:
    """Make all calls; each ended call starts the next one."""
    remaining = running = int(str(plan["requests"]))
    connections = [Connection(plan) for _ in range(int(str(plan["connections"])))]
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        started = time.perf_counter()
        for connection in connections:
            connection.waiting = int(str(plan["streams"]))
            remaining -= connection.waiting
            connection.flush()
        while running:
            for key, _ in selector.select():
                ended = key.data.read()
                running -= ended
                following = min(ended, remaining)
                key.data.waiting += following
                remaining -= following
                key.data.flush()
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": sum(c.received for c in connections)}


if __name__ == "__main__":
    print(json.dumps(drive(json.load(sys.stdin))))  # noqa: T201 - the parent reads it
