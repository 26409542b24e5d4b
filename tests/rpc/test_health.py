"""Readiness follows Postgres until the process drains."""

import grpc

from server.rpc.standard_services.health import Health, remote_readiness
from tests.logs import captured_lines
from tests.running import RunningService


class FakePostgres:
    """Answers a ping, or raises `error`."""

    error: Exception | None = None

    async def ping(self) -> None:
        if self.error:
            raise self.error


def health(postgres: FakePostgres) -> Health:
    return Health(postgres.ping, ["pkg.Service"])


async def test_health_follows_any_failure_of_postgres() -> None:
    """Also an unforeseen one; it is SERVING again afterwards."""
    postgres = FakePostgres()
    subject = health(postgres)
    await subject.refresh()
    assert await subject.ready()
    postgres.error = ValueError("unforeseen")
    await subject.refresh()
    assert not await subject.ready()
    postgres.error = None
    await subject.refresh()
    assert await subject.ready()


async def test_health_logs_an_outage_once() -> None:
    """A failed ping per second does not flood the log; the next outage is logged."""
    postgres = FakePostgres()
    subject = health(postgres)
    with captured_lines(event="postgres does not respond") as lines:
        for error in (ValueError("first"),) * 3 + (None, ValueError("second")):
            postgres.error = error
            await subject.refresh()
    causes = [line["cause"] for line in lines]
    assert causes == ["ValueError('first')", "ValueError('second')"]


async def test_health_stays_not_serving_once_drained() -> None:
    """L12: no later poll makes it SERVING again."""
    subject = health(FakePostgres())
    await subject.refresh()
    await subject.drain()
    await subject.refresh()
    assert not await subject.ready()


async def test_remote_readiness_follows_server(shared: RunningService) -> None:
    """A separate edge is ready when the server behind it is."""
    assert await remote_readiness(shared.channel)()
    async with grpc.aio.insecure_channel("127.0.0.1:1") as nowhere:
        assert not await remote_readiness(nowhere)()
