"""UpstreamPort: calls over a gRPC channel that is replaced under calls.

A channel keeps the credentials that it was created with. When they change, later calls
use a new channel, and the previous one is closed after its last call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import cast

import grpc

from edge.port import Metadata, Reply, StreamReply
from edge.remote.batching import BatchingPort
from server.rpc.standard_services.health import remote_readiness


class _UpstreamChannel:
    """One channel and its calls."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.port = BatchingPort(channel)
        self.is_ready = remote_readiness(channel)
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Count a call during the block."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def close_when_idle(self) -> None:
        """Wait for the last call and close the channel."""
        await self._idle.wait()
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        await self._channel.close()


class UpstreamPort:
    """A CallPort over a channel that is replaced when its credentials change."""

    def __init__(self, connect: Callable[[], grpc.aio.Channel]) -> None:
        self._connect = connect
        self._channel = _UpstreamChannel(connect())
        self._closing: dict[asyncio.Task[None], _UpstreamChannel] = {}

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109 - gRPC's term: the callee enforces it
    ) -> Reply:
        """Call a unary method. Raises CallError."""
        channel = self._channel
        with channel.in_use():
            return await channel.port.unary(
                method, request, metadata=metadata, timeout=timeout
            )

    def server_stream(
        self, method: str, request: bytes, *, metadata: Metadata, timeout: float | None
    ) -> StreamReply:
        """Call a server streaming method. The stream raises CallError."""

        def start(channel: _UpstreamChannel) -> StreamReply:
            return channel.port.server_stream(
                method, request, metadata=metadata, timeout=timeout
            )

        return _UpstreamStream(lambda: self._channel, start)

    async def is_ready(self) -> bool:
        """Return whether the server is serving."""
        channel = self._channel
        with channel.in_use():
            return await channel.is_ready()

    def reconnect(self) -> None:
        """Use a new channel for later calls."""
        previous, self._channel = self._channel, _UpstreamChannel(self._connect())
        task = asyncio.create_task(previous.close_when_idle())
        self._closing[task] = previous
        task.add_done_callback(self._closing.pop)

    async def close(self) -> None:
        """Close all channels; calls in flight are cancelled."""
        for task in [*self._closing]:
            task.cancel()
        for channel in (self._channel, *self._closing.values()):
            await channel.close()


class _UpstreamStream:
    """A stream that starts when it is read, on the channel of that moment."""

    def __init__(
        self,
        current_channel: Callable[[], _UpstreamChannel],
        start: Callable[[_UpstreamChannel], StreamReply],
    ) -> None:
        self._current_channel = current_channel
        self._start = start
        self.headers: Metadata = ()
        self.trailers: Metadata = ()

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        channel = self._current_channel()
        with channel.in_use():
            stream = self._start(channel)
            messages = cast("AsyncGenerator[bytes, None]", aiter(stream))
            async with aclosing(messages):
                async for message in messages:
                    self.headers = stream.headers
                    yield message
            self.headers, self.trailers = stream.headers, stream.trailers
