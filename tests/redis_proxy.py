"""A TCP proxy in front of Redis that can delay replies, or drop them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from redis.asyncio.connection import parse_url


class RedisProxy:
    """Forwards bytes to Redis; replies come `delay` seconds later, or never."""

    def __init__(self, redis_url: str) -> None:
        self._target = parse_url(redis_url)
        self._writers: set[asyncio.StreamWriter] = set()
        self._answering = asyncio.Event()
        self._answering.set()
        self.port = 0
        self.delay = 0.0

    @property
    def url(self) -> str:
        """The URL of the same key space through this proxy."""
        return f"redis://127.0.0.1:{self.port}/{self._target.get('db', 0)}"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._writers) // 2

    @property
    def silent(self) -> bool:
        return not self._answering.is_set()

    @silent.setter
    def silent(self, value: bool) -> None:
        if value:
            self._answering.clear()
        else:
            self._answering.set()

    async def accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Forward the bytes of one connection."""
        target = self._target
        if "path" in target:
            upstream_reader, upstream = await asyncio.open_unix_connection(
                target["path"]
            )
        else:
            upstream_reader, upstream = await asyncio.open_connection(
                target["host"], target["port"]
            )
        streams = {writer, upstream}
        self._writers |= streams
        try:
            await asyncio.gather(
                self._copy(reader, upstream, delayed=False),
                self._copy(upstream_reader, writer, delayed=True),
            )
        finally:
            self._writers -= streams
            for stream in streams:
                stream.close()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delayed: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if delayed:
                    await asyncio.sleep(self.delay)
                    await self._answering.wait()
                writer.write(data)
                await writer.drain()
            writer.close()

    async def stop(self) -> None:
        """Close every connection, and wait for the end of each."""
        self.delay, self.silent = 0, False
        while self._writers:
            for writer in self._writers:
                writer.close()
            await asyncio.sleep(0.001)


@asynccontextmanager
async def redis_proxy(redis_url: str) -> AsyncIterator[RedisProxy]:
    """Run a proxy in front of this Redis."""
    proxy = RedisProxy(redis_url)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.stop()
