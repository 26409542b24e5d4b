"""Readiness: what Postgres says, until the process drains."""

from datetime import timedelta

import grpc

from server.rpc.health import Health, remote_readiness
from tests.running import Running


class Postgres:
    """Answers, or does not."""

    error: Exception | None = None

    async def ping(self) -> None:
        if self.error:
            raise self.error


def health(postgres: Postgres) -> Health:
    return Health(postgres.ping, ["pkg.Service"], timedelta(0))


async def test_any_failure_turns_it() -> None:
    """Also one that nobody thought of; and it turns back."""
    postgres = Postgres()
    watched = health(postgres)
    await watched.refresh()
    assert await watched.ready()
    postgres.error = ValueError("something nobody thought of")
    await watched.refresh()
    assert not await watched.ready()
    postgres.error = None
    await watched.refresh()
    assert await watched.ready()


async def test_draining_is_for_good() -> None:
    """L12: no later look sends callers here again."""
    watched = health(Postgres())
    await watched.refresh()
    await watched.drain()
    await watched.refresh()
    assert not await watched.ready()


async def test_the_other_end_is_asked(shared: Running) -> None:
    """An edge alone is ready when the server behind it is."""
    assert await remote_readiness(shared.channel)()
    async with grpc.aio.insecure_channel("127.0.0.1:1") as nowhere:
        assert not await remote_readiness(nowhere)()
