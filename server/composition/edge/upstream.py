"""The connection from `academy edge` to its server, over TLS or in plaintext.

A gRPC channel keeps the credentials that it was created with. When the files change,
later calls use a new channel, and the previous one is closed after its last call.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, cast

import grpc

from edge.port import CHANNEL_OPTIONS, Metadata, Reply, StreamReply
from edge.remote.batching import BatchingPort
from server.composition.tls.certificates import Credentials
from server.composition.tls.reload import ReloadedCredentials
from server.rpc import contract
from server.rpc.standard_services.health import remote_readiness
from server.workers.poller import Poller
from server.workers.supervisor import Task, supervise

CHECK_INTERVAL = timedelta(seconds=1)


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


@asynccontextmanager
async def connected_upstream(
    server: str, credentials: ReloadedCredentials | None
) -> AsyncIterator[UpstreamPort]:
    """Connect to a server during the block, in plaintext without credentials."""
    options = channel_options()

    def connect() -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(server, options)
        return grpc.aio.secure_channel(
            server, _channel_credentials(credentials.current()), options
        )

    port = UpstreamPort(connect)
    try:
        async with supervise(*(_watch_tasks(credentials, port) if credentials else ())):
            yield port
    finally:
        await port.close()


def channel_options() -> list[tuple[str, Any]]:
    """Return the options of the channel: the policy of gRPC clients.

    Methods with a `request_id` are not retried: over REST it is the client that sets
    one or not, and that retries.
    """
    config = json.loads(contract.service_config())
    with_request_id = {m.path for m in contract.methods() if m.policy.idempotent}
    for method_config in config["methodConfig"]:
        method_config["name"] = [
            name
            for name in method_config["name"]
            if f"/{name['service']}/{name['method']}" not in with_request_id
        ]
    return [*CHANNEL_OPTIONS, ("grpc.service_config", json.dumps(config))]


def _channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        credentials.authorities, credentials.key, credentials.certificate
    )


def _watch_tasks(
    credentials: ReloadedCredentials, port: UpstreamPort
) -> Sequence[Task]:
    """Return the task that reconnects when the credentials have changed."""
    in_use = credentials.current()

    async def watch() -> None:
        nonlocal in_use
        credentials.warn_of_expiry()
        if credentials.current() is not in_use:
            in_use = credentials.current()
            port.reconnect()

    return (Poller("client certificate", watch, CHECK_INTERVAL),)
