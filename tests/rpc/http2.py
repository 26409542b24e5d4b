"""A client of HTTP/2 that writes frames one by one, the invalid ones too (RFC 9113)."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    *(0, 1, 3, 4, 6, 7, 8, 9),
)
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
CANCEL = struct.pack(">I", 8)  # error code of RST_STREAM
INITIAL_WINDOW_SIZE = 4  # setting


@dataclass(frozen=True, slots=True)
class Frame:
    """A received frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    """Return the bytes of a frame."""
    head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags))
    return head + struct.pack(">I", stream) + payload


def header_block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Return headers in HPACK, as literals without indexing (RFC 7541 6.2.2)."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in headers)


def _text(text: str) -> bytes:
    """Return a string literal without Huffman coding (RFC 7541 5.2)."""
    raw, length, prefix = text.encode(), len(text), b""
    if length < 127:
        return bytes((length,)) + raw
    prefix, length = b"\x7f", length - 127
    while length >= 128:
        prefix, length = prefix + bytes((length % 128 + 128,)), length // 128
    return prefix + bytes((length,)) + raw


def call_headers(path: str, *more: tuple[str, str]) -> bytes:
    """Return the headers of a gRPC call in HPACK."""
    return header_block(
        (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "test"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *more,
        )
    )


def message(body: bytes, *, size: int | None = None) -> bytes:
    """Return a gRPC message; it may announce another size than it has."""
    return struct.pack(">BI", 0, len(body) if size is None else size) + body


class Connection:
    """A connection that records the frames of the server until it is closed."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader, self._writer = reader, writer
        self.frames: list[Frame] = []
        self.answers_pings = True
        self._reading = asyncio.create_task(self._read())

    async def write(self, *frames: bytes) -> None:
        """Send frames. Raises ConnectionError once the server has disconnected."""
        self._writer.write(b"".join(frames))
        await self._writer.drain()

    async def begin(self, *settings: tuple[int, int]) -> None:
        """Send the preface and the settings."""
        packed = (struct.pack(">HI", *setting) for setting in settings)
        await self.write(PREFACE, frame(SETTINGS, b"".join(packed)))

    async def closed(self, seconds: float = 10) -> None:
        """Wait until the server has closed the connection."""
        async with asyncio.timeout(seconds):
            await asyncio.shield(self._reading)

    async def received(self, kind: int, seconds: float = 10) -> Frame:
        """Return the first frame of a kind, once it has arrived."""
        async with asyncio.timeout(seconds):
            while True:
                for each in self.frames:
                    if each.kind == kind:
                        return each
                await asyncio.sleep(0.01)

    def stop_reading(self) -> None:
        """Read no more of what the server sends."""
        self._reading.cancel()

    def abort(self) -> None:
        """Close the connection without a word."""
        self._writer.transport.abort()
        self._reading.cancel()

    async def _read(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(
                    int.from_bytes(head[:3], "big")
                )
                stream = int.from_bytes(head[5:], "big")
                self.frames.append(Frame(head[3], head[4], stream, payload))
                if head[3] == PING and not head[4] & ACK and self.answers_pings:
                    self._writer.write(frame(PING, payload, ACK))


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Connection]:
    """Yield a connection on which nothing has been sent."""
    host, _, port = address.rpartition(":")
    connection = Connection(*await asyncio.open_connection(host, int(port)))
    try:
        yield connection
    finally:
        connection.abort()
