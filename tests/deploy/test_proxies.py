"""The examples for nginx, Caddy and Envoy, in front of the real service."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from edge.config import MIB, EdgeSettings
from edge.listener import DeadlinedProtocol
from server.composition.listeners.serving import listening_http
from server.composition.listeners.sockets import bind_http, bound_address
from server.config import Settings
from server.domain.accounts.users import Role
from tests.conftest import Servers, fresh_database, key_space, open_folder
from tests.deploy.proxies import (
    CLIENT_ADDRESS,
    EXAMPLES,
    NEEDS_PROXIES,
    Example,
    Proxy,
    Replica,
    running_proxy,
)
from tests.fault_proxy import fault_proxy, to_address
from tests.logs import captured_lines
from tests.running import PASSWORD, RunningService, running

SECONDS = 20
SPOOFED = "203.0.113.9"
LOG_INS = 6
IDLE_TIMEOUT = "60s"  # of connections to the service, in each example
pytestmark = NEEDS_PROXIES


@dataclass(frozen=True, slots=True)
class Served:
    """The service, and the addresses of its listeners."""

    service: RunningService
    rest: str

    @property
    def replicas(self) -> list[Replica]:
        """The process twice, because the examples have two."""
        return [Replica(self.service.address, self.rest)] * 2


@asynccontextmanager
async def served(database_url: str, redis_url: str) -> AsyncIterator[Served]:
    """Run the service; it trusts the proxies of this machine."""
    proxy = "127.0.0.1"
    async with running(database_url, redis_url, trusted_proxies=proxy) as service:
        with bind_http("127.0.0.1:0") as listener:
            async with listening_http(service.app, listener, DeadlinedProtocol):
                yield Served(service, bound_address("127.0.0.1:0", listener))


@pytest_asyncio.fixture(scope="session")
async def behind(
    servers: Servers, admin: AsyncEngine, template: str
) -> AsyncIterator[Served]:
    """Return the service that the proxies of these tests share."""
    async with (
        fresh_database(servers, admin, template) as url,
        served(url, key_space(servers, 7)) as service,
    ):
        yield service


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Return a folder that processes of other accounts may enter."""
    with open_folder() as path:
        yield path


@pytest_asyncio.fixture(scope="session", params=EXAMPLES, ids=lambda e: e.name)
async def proxy(
    request: pytest.FixtureRequest, behind: Served, folder: Path
) -> AsyncIterator[Proxy]:
    """Return each proxy with its example file."""
    example = request.param
    own = folder / example.name
    async with running_proxy(example, behind.replicas, own) as started:
        yield started


async def test_service_sees_the_address_of_the_client(
    behind: Served, proxy: Proxy
) -> None:
    """By REST and gRPC, whatever the client itself writes into x-forwarded-for."""
    ana = await behind.service.signed_in()
    request = user_pb2.GetCurrentUserRequest()
    forged = {"x-forwarded-for": SPOOFED}
    with captured_lines(event="call") as lines:
        response = await proxy.rest.get(
            "/api/v1/users/me", headers=ana.headers | forged
        )
        reply = await UserServiceStub(proxy.channel).GetCurrentUser(
            request, metadata=(*ana.metadata, *forged.items())
        )
    assert response.json()["username"] == reply.user.username == ana.user.username
    calls = [line for line in lines if line["method"].endswith("/GetCurrentUser")]
    assert [line["address"] for line in calls] == [CLIENT_ADDRESS] * 2


@pytest.mark.parametrize("media_type", ["text/event-stream", "application/x-ndjson"])
async def test_rest_stream_passes_message_by_message(
    behind: Served, proxy: Proxy, media_type: str
) -> None:
    admin = await behind.service.signed_in(Role.ADMIN)
    headers = admin.headers | {"accept": media_type}
    stream = proxy.rest.stream("GET", "/api/v1/users:watch", headers=headers)
    async with asyncio.timeout(SECONDS), stream as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == media_type
        lines = response.aiter_lines()
        await anext(lines)  # the first message, which is sent immediately
        user = await behind.service.sign_up()
        while user.username not in await anext(lines):
            pass


async def test_grpc_stream_passes_message_by_message(
    behind: Served, proxy: Proxy
) -> None:
    admin = await behind.service.signed_in(Role.ADMIN)
    users = UserServiceStub(proxy.channel)
    stream: Any = users.WatchUsers(
        user_pb2.WatchUsersRequest(), metadata=admin.metadata
    )
    async with asyncio.timeout(SECONDS):
        await stream.read()
        user = await behind.service.sign_up()
        while user.username not in str(await stream.read()):
            pass
    stream.cancel()


async def test_body_is_limited_as_in_the_service(proxy: Proxy) -> None:
    """A body of 1 MiB reaches it; a larger one does not, with or without a length."""
    limit = EdgeSettings().max_body_bytes
    headers = {"content-type": "application/json"}

    async def post(body: bytes | AsyncIterator[bytes]) -> httpx.Response:
        return await proxy.rest.post("/api/v1/users", content=body, headers=headers)

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(limit // 1024 + 1):
            yield b" " * 1024

    accepted = await post(b"{}".rjust(limit))
    assert accepted.status_code == 400
    assert "error" in accepted.json()  # the service's
    assert (await post(b"{}".rjust(limit + 1))).status_code == 413
    assert (await post(parts())).status_code == 413


async def test_large_message_gets_the_status_of_the_service(proxy: Proxy) -> None:
    request = auth_pb2.LoginRequest(identifier="a" * (MIB + 1))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await AuthServiceStub(proxy.channel).Login(request)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
async def test_idle_connections_are_closed_before_the_service_closes_them(
    behind: Served, state_dir: Path, example: Example
) -> None:
    """Connections are kept for a time below HTTP_KEEP_ALIVE, which is shortened here.

    Health checks keep one connection to each process.
    """
    assert timedelta(seconds=60) < Settings().http_keep_alive
    ana = await behind.service.signed_in()
    body = {"identifier": ana.user.username, "password": PASSWORD}
    to_rest = to_address(behind.rest)
    async with fault_proxy(to_rest) as first, fault_proxy(to_rest) as second:
        replicas = [Replica(behind.service.address, r.address) for r in (first, second)]
        shorter = {IDLE_TIMEOUT: "2s"}
        own = state_dir / example.name
        async with running_proxy(example, replicas, own, shorter) as proxy:
            log_ins = [
                proxy.rest.post("/api/v1/auth/login", json=body) for _ in range(LOG_INS)
            ]
            answers = await asyncio.gather(*log_ins)
            assert {answer.status_code for answer in answers} == {200}
            assert first.connections + second.connections > LOG_INS / 2
            async with asyncio.timeout(SECONDS):
                while max(r.connections for r in (first, second)) > 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
