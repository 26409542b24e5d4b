"""The asyncpg connection of the pool: closing it never delays a caller for long."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

CLOSE_WAIT_SECONDS = 0.05
ACCEPT_WAIT_SECONDS = 0.3  # until a busy Postgres accepts a connection
ACCEPT_INTERVAL_SECONDS = 0.01
CLOSE_TIMEOUT_SECONDS = 2.0
_closing: set[asyncio.Task[None]] = set()


class PooledConnection(asyncpg.Connection):  # type: ignore[misc]
    """A connection whose close continues in the background if Postgres is silent.

    SQLAlchemy closes a connection when its caller is cancelled in a statement. asyncpg
    then cancels the statement in Postgres and waits for the reply. Usually this takes
    milliseconds; waiting for it keeps the number of connections within the pool's size.
    """

    async def close(self, **_: object) -> None:
        """Close; wait for the end for CLOSE_WAIT_SECONDS only."""
        task = asyncio.create_task(self._close())
        _closing.add(task)
        task.add_done_callback(_closing.discard)
        await asyncio.wait((task,), timeout=CLOSE_WAIT_SECONDS)

    async def _close(self) -> None:
        try:
            await super().close(timeout=CLOSE_TIMEOUT_SECONDS)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.terminate()


class FallbackConnection(PooledConnection):
    """A connection to a server without the target_session_attrs of the URL."""


async def connect(**arguments: Any) -> PooledConnection:
    """Connect, to any server if none has the target_session_attrs of the URL.

    During a failover, reads then still work.
    """
    connection: PooledConnection
    try:
        connection = await connect_when_accepted(
            connection_class=PooledConnection, **arguments
        )
    except asyncpg.TargetServerAttributeNotMatched:
        connection = await connect_when_accepted(
            connection_class=FallbackConnection,
            **arguments | {"target_session_attrs": "any"},
        )
    return connection


async def connect_when_accepted(**arguments: Any) -> Any:
    """Return asyncpg's connection; wait for a moment for a busy Postgres.

    A connect to a Unix socket fails with EAGAIN while the queue of the listener is
    full (https://man7.org/linux/man-pages/man2/connect.2.html), which is no outage.
    Over TCP the kernel waits by itself.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + ACCEPT_WAIT_SECONDS
    while True:
        try:
            return await asyncpg.connect(**arguments)
        except BlockingIOError:
            if loop.time() >= until:
                raise
        await asyncio.sleep(ACCEPT_INTERVAL_SECONDS)
