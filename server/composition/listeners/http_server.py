"""HttpServer: uvicorn's server on bound sockets, without its signal handlers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import uvicorn

TLS_TIMEOUT_SECONDS = 10.0  # for a handshake, as for the headers of a request


class HttpServer(uvicorn.Server):
    """A server of bound sockets. It handles no signals: `until_stopped` does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn does, but with limits for the two ends of TLS.

        asyncio would wait for 60 seconds for a handshake, and 30 for a client to
        confirm that the connection has ended.
        """
        await self.lifespan.startup()
        config, loop = self.config, asyncio.get_running_loop()
        protocol = partial(
            cast("Callable[..., asyncio.Protocol]", config.http_protocol_class),
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        limit = TLS_TIMEOUT_SECONDS if config.ssl else None
        self.servers = [
            await loop.create_server(
                protocol,
                sock=listener,
                ssl=config.ssl,
                backlog=config.backlog,
                ssl_handshake_timeout=limit,
                ssl_shutdown_timeout=limit,
            )
            for listener in sockets or ()
        ]
        self.started = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handler."""
        yield

    def close_connections(self) -> None:
        """Send `connection: close` with each response from now on.

        Clients that keep connections open leave before the listener closes.
        """
        header = (b"connection", b"close")
        self.config.encoded_headers.append(header)  # read once a second
        self.server_state.default_headers = [
            *self.server_state.default_headers,
            header,
        ]
