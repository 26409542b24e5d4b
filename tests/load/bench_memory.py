"""What an idle connection and an open stream take of the server's memory (P20)."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

from server.store.connections.connect import Database
from tests.load.bench_watch import service_key, watching
from tests.load.row import ResultRow
from tests.load.service import Service, running

COUNT = int(os.environ.get("BENCH_CONNECTIONS", "900"))
WARM_UP = 100
SETTLE_SECONDS = 2
KIB = 1024
ANSWER_SIZE = 12  # bytes that contain the status code, or the type of a frame
# RFC 9113 3.4: the client's connection preface, empty SETTINGS, and the acknowledgement
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
SETTINGS_ACK = b"\0\0\0\x04\x01\0\0\0\0"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def rows() -> list[ResultRow]:
    """Return the growth of resident memory per connection and per stream.

    Each is measured in a new process, so that none uses memory that another has freed.
    """
    rows = []
    with running() as service:
        request = PREFACE + SETTINGS + SETTINGS_ACK
        grown = await _connection_memory(service, service.grpc, request, SETTINGS[3:5])
        rows.append(_row("gRPC connection", grown, 40))
    with running() as service:
        request = b"GET /livez HTTP/1.1\r\nHost: academy\r\n\r\n"
        grown = await _connection_memory(service, service.rest, request, b"200")
        rows.append(_row("keep-alive connection", grown, 20))
    with running() as service:
        rows.append(_row("open stream", await _stream_memory(service), 20))
    return rows


async def _connection_memory(
    service: Service, address: str, request: bytes, answer: bytes
) -> int:
    """Return the growth by idle connections; each has been answered once."""
    process = psutil.Process(service.process)
    async with _connections(address, request, answer, WARM_UP):
        pass
    before = await _memory(process)
    async with _connections(address, request, answer, COUNT):
        return await _memory(process) - before


async def _stream_memory(service: Service) -> int:
    """Return the growth by streams on few connections."""
    process = psutil.Process(service.process)
    database = Database(service.database)
    metadata = await service_key(service, database)
    await database.close()
    async with watching(service, metadata, WARM_UP):
        pass
    before = await _memory(process)
    async with watching(service, metadata, COUNT):
        return await _memory(process) - before


def _row(name: str, grown: int, target: int) -> ResultRow:
    return ResultRow(
        f"P20 memory per {name}",
        grown / COUNT / KIB,
        target,
        better="lower",
        unit="KiB",
        notes=f"growth of resident memory by {COUNT:,}",
    )


async def _memory(process: psutil.Process) -> int:
    await asyncio.sleep(SETTLE_SECONDS)
    return int(process.memory_info().rss)


@asynccontextmanager
async def _connections(
    address: str, request: bytes, answer: bytes, count: int
) -> AsyncIterator[None]:
    """Open connections that have been answered, and leave them idle."""
    connections = [await _opened(address, request, answer) for _ in range(count)]
    try:
        yield
        assert not any(reader.at_eof() for reader, _ in connections)
    finally:
        for _, writer in connections:
            writer.close()


async def _opened(address: str, request: bytes, answer: bytes) -> Connection:
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    assert answer in await reader.readexactly(ANSWER_SIZE)
    return reader, writer
