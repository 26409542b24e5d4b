"""A TCP proxy that adds faults: latency, loss of all packets, resets, a slow link."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa

from tests.environments import POOLERS

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Connection]]
COMMITTED = b"COMMIT\0"  # the end of Postgres' answer to a COMMIT (CommandComplete)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with 0 seconds


@dataclass
class FaultProxy:
    """Forwards bytes between its clients and one server, with the faults that are set.

    `latency` delays each direction, in seconds. `reset_after` and `reset_on` count or
    find bytes from the server: they reset the connection instead of forwarding them.
    """

    connect: Connect
    port: int = 0
    latency: float = 0.0
    bytes_per_second: float = 0.0  # 0: no limit
    reset_after: int | None = None
    reset_on: bytes = b""
    resets: int = 0
    _forwarding: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._forwarding.set()

    @property
    def address(self) -> str:
        """Host and port, as settings write them."""
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._tasks)

    @property
    def silent(self) -> bool:
        """Whether every packet is dropped; the connections stay open."""
        return not self._forwarding.is_set()

    @silent.setter
    def silent(self, value: bool) -> None:
        if value:
            self._forwarding.clear()
        else:
            self._forwarding.set()

    async def start(self) -> None:
        """Listen: the server is reachable."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and reset every connection: the server is away."""
        if self._server:
            self._server.close()
        await self.reset()

    async def reset(self) -> None:
        """Reset every connection; new ones are accepted."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if not (self._server and self._server.is_serving()):
            writer.transport.abort()  # accepted just before `stop`
            return
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        streams = [writer]
        try:
            upstream_reader, upstream = await self.connect()
            streams.append(upstream)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, upstream))
                group.create_task(self._copy_answers(upstream_reader, writer))
        except* OSError:
            pass  # a reset of one side resets the other
        except* asyncio.CancelledError:
            pass  # asyncio would report it as an error of the server
        finally:
            for stream in streams:
                stream.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            await self._forward(data, writer)
        writer.close()

    async def _copy_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        remaining = self.reset_after
        while data := await reader.read(65536):
            if remaining is not None:
                remaining -= len(data)
            is_cut = remaining is not None and remaining < 0
            if is_cut or (self.reset_on and self.reset_on in data):
                self.resets += 1
                _reset(writer)
                raise ConnectionResetError
            await self._forward(data, writer)
        writer.close()

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        await self._forwarding.wait()
        if delay := self.latency + self._transmission(len(data)):
            await asyncio.sleep(delay)
            await self._forwarding.wait()
        writer.write(data)
        await writer.drain()

    def _transmission(self, size: int) -> float:
        return size / self.bytes_per_second if self.bytes_per_second else 0.0


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a TCP reset."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


@asynccontextmanager
async def fault_proxy(connect: Connect, port: int = 0) -> AsyncIterator[FaultProxy]:
    """Run a proxy in front of a server."""
    proxy = FaultProxy(connect, port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


def to_address(address: str) -> Connect:
    """Return a function that connects to HOST:PORT."""
    host, _, port = address.rpartition(":")
    return lambda: asyncio.open_connection(host, int(port))


def to_postgres(database_url: str) -> Connect:
    """Return a function that connects to the socket of Postgres, or to its pooler."""
    folder = str(sa.make_url(database_url).query["host"])
    if pooler := POOLERS.get(folder):
        return to_address(pooler)
    path = f"{folder}/.s.PGSQL.5432"
    return lambda: asyncio.open_unix_connection(path)


def to_redis(redis_url: str) -> Connect:
    """Return a function that connects to a Redis, by TCP or by its socket."""
    parts = urlsplit(redis_url)
    if parts.hostname:
        return to_address(f"{parts.hostname}:{parts.port or 6379}")
    path = unquote(parts.path)
    return lambda: asyncio.open_unix_connection(path)


def proxied_database_url(database_url: str, proxy: FaultProxy) -> str:
    """Return the URL of the same database through a proxy."""
    url = sa.make_url(database_url)
    return f"postgresql://{url.username}@{proxy.address}/{url.database}"
