"""A TCP proxy in front of Postgres that can drop every packet, or be away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import sqlalchemy as sa


class SilentProxy:
    """Forwards bytes to Postgres; while `silent`, keeps connections and drops bytes."""

    def __init__(self, database_url: str, port: int) -> None:
        self._server_url = sa.make_url(database_url)
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The URL of the database through this proxy."""
        url = self._server_url
        return f"postgresql://{url.username}@127.0.0.1:{self._port}/{url.database}"

    @property
    def silent(self) -> bool:
        return not self._open.is_set()

    @silent.setter
    def silent(self, value: bool) -> None:
        if value:
            self._open.clear()
        else:
            self._open.set()

    async def start(self) -> None:
        """Listen: Postgres is reachable."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self._port, reuse_address=True
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and reset every connection: Postgres is away."""
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        socket_path = f"{self._server_url.query['host']}/.s.PGSQL.5432"
        upstream_reader, upstream = await asyncio.open_unix_connection(socket_path)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, upstream))
                group.create_task(self._copy(upstream_reader, writer))
        finally:
            for stream in (writer, upstream):
                stream.close()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
            writer.close()


@asynccontextmanager
async def silent_proxy(database_url: str) -> AsyncIterator[SilentProxy]:
    """Run a proxy in front of this database."""
    proxy = SilentProxy(database_url, 0)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
