"""The drain of a service: who is sent away, when, and what still answers meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from server.composition.service import Service, running_service
from server.composition.sockets import bind_http
from server.config import load
from server.rpc.contract import service_config

LAME_DUCK = timedelta(seconds=0.5)
SECONDS = 20
CALLERS = 20
CHECK = health_pb2.HealthCheckRequest()
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True)
class Running:
    """A service in this process that listens, and its clients."""

    service: Service
    health: Any
    http: httpx.AsyncClient


@dataclass(slots=True)
class Calls:
    """Calls of concurrent callers to a stub of several services."""

    made: int = 0
    errors: list[grpc.aio.AioRpcError] = field(default_factory=list)
    stopped: bool = False

    async def make(self, auth: AuthServiceStub) -> None:
        """Call until stopped."""
        request = auth_pb2.GetJsonWebKeySetRequest()
        while not self.stopped:
            try:
                await auth.GetJsonWebKeySet(request, timeout=SECONDS)
            except grpc.aio.AioRpcError as error:
                self.errors.append(error)
            self.made += 1

    async def more(self, count: int) -> None:
        """Wait for so many more calls."""
        end = self.made + count
        async with asyncio.timeout(SECONDS):
            while self.made < end:  # noqa: ASYNC110 - a number
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(database_url: str, redis_url: str) -> AsyncIterator[Running]:
    settings = load(
        database_url=database_url,
        redis_url=redis_url,
        secret_key="0123456789abcdef" * 4,
        grpc_listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
    )
    with bind_http(settings.http_listen) as listener:
        async with running_service(settings, listener, migrated=True) as service:
            base_url = f"http://{service.http_address}"
            async with (
                grpc.aio.insecure_channel(service.grpc_address) as channel,
                httpx.AsyncClient(base_url=base_url) as http,
            ):
                yield Running(service, health_pb2_grpc.HealthStub(channel), http)


async def test_drain_sends_clients_away_before_listeners_close(
    database_url: str, redis_url: str
) -> None:
    """NOT_SERVING and 503 first; calls are answered, and connections close."""
    async with running(database_url, redis_url) as started:
        before = await started.http.get("/readyz")
        assert (before.status_code, before.headers.get("connection")) == (200, None)
        watch = started.health.Watch(CHECK)
        assert (await watch.read()).status == SERVING
        drain = asyncio.create_task(started.service.drain(LAME_DUCK))
        assert (await watch.read()).status == NOT_SERVING
        readiness = await started.http.get("/readyz")
        assert readiness.status_code == 503
        assert readiness.headers["connection"] == "close"
        jwks = await started.http.get("/.well-known/jwks.json")
        assert (jwks.status_code, jwks.headers["connection"]) == (200, "close")
        assert (await started.health.Check(CHECK)).status == NOT_SERVING
        assert not drain.done()
        await drain


async def test_stop_of_one_of_two_services_fails_no_call(
    database_url: str, redis_url: str
) -> None:
    """With the shipped client policy: the clients leave during the lame duck."""
    options = [("grpc.service_config", service_config())]
    async with running(database_url, redis_url) as stays:
        calls = Calls()
        async with running(database_url, redis_url) as leaves:
            addresses = stays.service.grpc_address, leaves.service.grpc_address
            channel = grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", options)
            auth = AuthServiceStub(channel)
            callers = [asyncio.create_task(calls.make(auth)) for _ in range(CALLERS)]
            await calls.more(50)
            await leaves.service.drain(LAME_DUCK)
        await calls.more(50)
        calls.stopped = True
        await asyncio.gather(*callers)
        await channel.close()
    assert calls.errors == []


async def test_replaced_service_stays_healthy_while_it_drains(
    database_url: str, redis_url: str
) -> None:
    """Its successor has the same address: a client finds no other one to go to."""
    async with running(database_url, redis_url) as started:
        drain = asyncio.create_task(started.service.drain(LAME_DUCK, replaced=True))
        await asyncio.sleep(0)
        assert (await started.health.Check(CHECK)).status == SERVING
        readiness = await started.http.get("/readyz")
        assert readiness.status_code == 200
        assert readiness.headers["connection"] == "close"
        await drain


async def test_health_watch_does_not_delay_the_stop(
    database_url: str, redis_url: str
) -> None:
    """The stream ends after the lame duck, and a new one at once."""
    async with running(database_url, redis_url) as started:
        watch = started.health.Watch(CHECK)
        await watch.read()
        await started.service.drain(timedelta(0))
        assert (await watch.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="the server is stopping"):
            await watch.read()
        late = started.health.Watch(CHECK, timeout=SECONDS)
        assert await late.code() is grpc.StatusCode.UNAVAILABLE
