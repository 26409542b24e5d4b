"""Fixtures: `academy` commands in their own processes, and databases for them."""

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine

from server.cli import terminal
from tests.command_server import CommandServer, command_server
from tests.conftest import Servers, run, url_of


@pytest.fixture(autouse=True)
def logging_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no command in this process log to the streams of a runner."""
    monkeypatch.setattr(terminal, "configure", lambda *_: None)


@pytest.fixture(scope="session")
def commands() -> Iterator[CommandServer]:
    """Return what runs `academy` commands."""
    with command_server() as server:
        yield server


@pytest_asyncio.fixture
async def empty(servers: Servers, admin: AsyncEngine) -> AsyncIterator[str]:
    """Yield the URL of a database without tables."""
    name = f"empty_{uuid.uuid4().hex[:8]}"
    await run(admin, f"create database {name}")
    yield url_of(servers, name)
    await run(admin, f"drop database {name} with (force)")
