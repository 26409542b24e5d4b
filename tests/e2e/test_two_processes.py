"""Sessions over two processes that share nothing but the stores."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import grpc
import httpx
import pytest_asyncio
import redis
from sqlalchemy.ext.asyncio import AsyncEngine

from blatam.auth.v1 import auth_pb2, auth_pb2_grpc
from blatam.user.v1 import user_pb2, user_pb2_grpc
from tests.conftest import Servers, fresh_database, key_space
from tests.processes import serving
from tests.running import NO_LIMITS, Running, running

SECRET_KEY = "0123456789abcdef" * 4
ME = user_pb2.GetCurrentUserRequest()
Refresh = Callable[[str], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Pair:
    """One process is the test's own; the other is reached by its ports alone."""

    here: Running
    channel: grpc.aio.Channel
    http: httpx.AsyncClient

    @property
    def ways(self) -> list[Refresh]:
        """Give what refreshes by gRPC and REST, at either process."""
        there = auth_pb2_grpc.AuthServiceStub(self.channel)
        return [
            by_grpc(self.here.auth),
            by_rest(self.here.http),
            by_grpc(there),
            by_rest(self.http),
        ]

    async def let_in(self, token: str) -> bool:
        """Ask the other process whether an access token serves."""
        users = user_pb2_grpc.UserServiceStub(self.channel)
        try:
            await users.GetCurrentUser(
                ME, metadata=(("authorization", f"Bearer {token}"),)
            )
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.UNAUTHENTICATED
        return True


def by_grpc(stub: auth_pb2_grpc.AuthServiceStub) -> Refresh:
    async def refresh(token: str) -> str:
        request = auth_pb2.RefreshTokenRequest(refresh_token=token)
        try:
            return (await stub.RefreshToken(request)).tokens.refresh_token
        except grpc.aio.AioRpcError as error:
            return error.code().name

    return refresh


def by_rest(http: httpx.AsyncClient) -> Refresh:
    async def refresh(token: str) -> str:
        answer = await http.post("/api/v1/auth/refresh", json={"refreshToken": token})
        told = answer.json()
        return str(told["refreshToken"] if answer.is_success else told["status"])

    return refresh


@pytest_asyncio.fixture(scope="module")
async def pair(
    servers: Servers, admin: AsyncEngine, template: str
) -> AsyncIterator[Pair]:
    redis_url = key_space(servers, 2)
    async with fresh_database(servers, admin, template) as database_url:
        env = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "SECRET_KEY": SECRET_KEY,
            "RATE_LIMITS": json.dumps(NO_LIMITS),
        }
        async with (
            running(database_url, redis_url, secret_key=SECRET_KEY) as here,
            serving(env) as there,
            httpx.AsyncClient(base_url=there.rest) as http,
        ):
            yield Pair(here, there.channel, http)


async def test_twenty_refreshes_at_once(pair: Pair) -> None:
    """R19, R20: over both transports and processes one successor, and it serves."""
    ana = await pair.here.signed_in()
    successors = await asyncio.gather(
        *(refresh(ana.tokens.refresh_token) for refresh in pair.ways * 5)
    )
    assert len(set(successors)) == 1
    for refresh in pair.ways:
        successors.append(await refresh(successors[-1]))
    assert len(set(successors)) == 1 + len(pair.ways)
    assert await pair.let_in(ana.tokens.access_token)


async def test_a_lost_response(pair: Pair) -> None:
    """R19: asked again a second later, anywhere, it is the same one."""
    people = [await pair.here.signed_in() for _ in pair.ways]
    asked = list(zip(pair.ways, reversed(pair.ways), people, strict=True))
    lost = [await first(who.tokens.refresh_token) for first, _, who in asked]
    await asyncio.sleep(1)  # what the rule is about
    again = [await second(who.tokens.refresh_token) for _, second, who in asked]
    assert again == lost
    for (first, _, _), token in zip(asked, again, strict=True):
        assert await first(token) not in ("UNAUTHENTICATED", token)


async def test_a_grandparent_ends_the_session(pair: Pair) -> None:
    """R18, R22: told to one process, seen by the other within a second."""
    for refresh in pair.ways[:2]:
        ana = await pair.here.signed_in()
        assert await pair.let_in(ana.tokens.access_token)
        child = await refresh(ana.tokens.refresh_token)
        grandchild = await refresh(child)
        assert await refresh(ana.tokens.refresh_token) == "UNAUTHENTICATED"
        async with asyncio.timeout(1):
            inside = True
            while inside:
                inside = await pair.let_in(ana.tokens.access_token)
        for refresh_elsewhere in pair.ways:
            assert await refresh_elsewhere(grandchild) == "UNAUTHENTICATED"


async def test_everything_ends_everywhere_without_redis(
    pair: Pair, servers: Servers
) -> None:
    """R22: a hint that is lost costs no more than the second."""
    ana = await pair.here.signed_in()
    assert await pair.let_in(ana.tokens.access_token)
    with redis.Redis.from_url(servers.redis_url) as client:
        client.client_kill_filter(_type="pubsub")
        await pair.here.auth.Logout(auth_pb2.LogoutRequest(), metadata=ana.metadata)
    async with asyncio.timeout(1):
        inside = True
        while inside:
            inside = await pair.let_in(ana.tokens.access_token)
