"""Connecting to a Postgres that does not accept connections fast enough."""

import asyncio
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from server.store.pool import driver
from server.store.pool.driver import connect_when_accepted


def full_listener(path: Path) -> tuple[socket.socket, list[socket.socket]]:
    """Return a listener whose queue is full, and the clients that fill it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(0)
    clients: list[socket.socket] = []
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        try:
            client.connect(str(path))
        except BlockingIOError:
            client.close()
            return listener, clients
        clients.append(client)


async def connect(folder: str) -> None:
    await connect_when_accepted(host=folder, user="u", database="d", timeout=5)


async def test_full_queue_is_no_outage_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with TemporaryDirectory(dir="/tmp") as folder:
        listener, clients = full_listener(Path(folder) / ".s.PGSQL.5432")
        monkeypatch.setattr(driver, "ACCEPT_WAIT_SECONDS", 0.05)
        with pytest.raises(BlockingIOError):  # nobody accepts for all that time
            await connect(folder)
        monkeypatch.setattr(driver, "ACCEPT_WAIT_SECONDS", 5)
        connecting = asyncio.create_task(connect(folder))
        await asyncio.sleep(0.05)
        assert not connecting.done()
        for client in clients:
            listener.accept()[0].close()
            client.close()
        accepted = await asyncio.to_thread(listener.accept)
        accepted[0].close()
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):  # no Postgres answers
            await connecting
        listener.close()
