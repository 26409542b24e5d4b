"""Sessions across two processes that share only the stores."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import grpc
import httpx
import pytest
import pytest_asyncio
import redis
from sqlalchemy.ext.asyncio import AsyncEngine

from blatam.auth.v1 import auth_pb2, auth_pb2_grpc
from blatam.user.v1 import user_pb2, user_pb2_grpc
from tests.conftest import Servers, fresh_database, key_space
from tests.processes import serving
from tests.redis_nodes import primary_urls
from tests.running import NO_LIMITS, RunningService, SignedInUser, running

SECRET_KEY = "0123456789abcdef" * 4
ME = user_pb2.GetCurrentUserRequest()
UPDATES = 10
STALE_SECONDS = 2  # caches in a process keep an account for 5 s
Refresh = Callable[[str], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Pair:
    """The service in the test's process, and one in a process of its own."""

    local: RunningService
    channel: grpc.aio.Channel
    http: httpx.AsyncClient

    @property
    def refreshers(self) -> list[Refresh]:
        """Return functions that refresh a token: each process by gRPC and REST."""
        remote_auth = auth_pb2_grpc.AuthServiceStub(self.channel)
        return [
            by_grpc(self.local.auth),
            by_rest(self.local.http),
            by_grpc(remote_auth),
            by_rest(self.http),
        ]

    async def accepts(self, token: str) -> bool:
        """Return whether the other process accepts an access token."""
        users = user_pb2_grpc.UserServiceStub(self.channel)
        try:
            await users.GetCurrentUser(
                ME, metadata=(("authorization", f"Bearer {token}"),)
            )
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.UNAUTHENTICATED
        return True

    async def name_elsewhere(self, viewer: SignedInUser, user: SignedInUser) -> str:
        """Return a username as the other process answers, "" if it is not found."""
        users = user_pb2_grpc.UserServiceStub(self.channel)
        request = user_pb2.GetUserRequest(id=user.user.id)
        try:
            response = await users.GetUser(request, metadata=viewer.metadata)
        except grpc.aio.AioRpcError as error:
            return "" if error.code() is grpc.StatusCode.NOT_FOUND else str(error)
        return response.user.username

    async def until_elsewhere(
        self, viewer: SignedInUser, user: SignedInUser, name: str
    ) -> None:
        """Wait until the other process answers with this username."""
        async with asyncio.timeout(STALE_SECONDS):
            while await self.name_elsewhere(viewer, user) != name:
                pass


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
        response = await http.post("/api/v1/auth/refresh", json={"refreshToken": token})
        body = response.json()
        return str(body["refreshToken"] if response.is_success else body["status"])

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
            running(database_url, redis_url, secret_key=SECRET_KEY) as local,
            serving(env) as remote,
            httpx.AsyncClient(base_url=remote.rest) as http,
        ):
            yield Pair(local, remote.channel, http)


async def test_concurrent_refreshes_give_one_successor(pair: Pair) -> None:
    """R19, R20: over both transports and processes, and the successor is valid."""
    ana = await pair.local.signed_in()
    successors = await asyncio.gather(
        *(refresh(ana.tokens.refresh_token) for refresh in pair.refreshers * 5)
    )
    assert len(set(successors)) == 1
    for refresh in pair.refreshers:
        successors.append(await refresh(successors[-1]))
    assert len(set(successors)) == 1 + len(pair.refreshers)
    assert await pair.accepts(ana.tokens.access_token)


async def test_repeated_refresh_gives_the_same_successor(pair: Pair) -> None:
    """R19: a second later, at any process and over any transport."""
    people = [await pair.local.signed_in() for _ in pair.refreshers]
    attempts = list(
        zip(pair.refreshers, reversed(pair.refreshers), people, strict=True)
    )
    lost = [await first(who.tokens.refresh_token) for first, _, who in attempts]
    await asyncio.sleep(1)  # the client noticed the lost response
    again = [await second(who.tokens.refresh_token) for _, second, who in attempts]
    assert again == lost
    for (first, _, _), token in zip(attempts, again, strict=True):
        assert await first(token) not in ("UNAUTHENTICATED", token)


async def test_reused_refresh_token_ends_the_session_everywhere(pair: Pair) -> None:
    """R18, R22: reuse at one process ends it at the other within a second."""
    for refresh in pair.refreshers[:2]:
        ana = await pair.local.signed_in()
        assert await pair.accepts(ana.tokens.access_token)
        child = await refresh(ana.tokens.refresh_token)
        grandchild = await refresh(child)
        assert await refresh(ana.tokens.refresh_token) == "UNAUTHENTICATED"
        async with asyncio.timeout(1):
            accepted = True
            while accepted:
                accepted = await pair.accepts(ana.tokens.access_token)
        for refresh_elsewhere in pair.refreshers:
            assert await refresh_elsewhere(grandchild) == "UNAUTHENTICATED"


async def test_change_of_account_reaches_every_process(pair: Pair) -> None:
    """L17: another process soon answers with each change, and never with less."""
    ana, viewer = await pair.local.signed_in(), await pair.local.signed_in()
    assert await pair.name_elsewhere(viewer, ana) == ana.user.username
    for number in range(UPDATES):
        name = f"{ana.user.username}_{number}"
        user = user_pb2.User(id=ana.user.id, username=name)
        request = user_pb2.UpdateUserRequest(user=user)
        request.update_mask.paths.append("username")
        await pair.local.users.UpdateUser(request, metadata=ana.metadata)
        await pair.until_elsewhere(viewer, ana, name)
        assert await pair.name_elsewhere(viewer, ana) == name
    deletion = user_pb2.DeleteUserRequest(id=ana.user.id)
    await pair.local.users.DeleteUser(deletion, metadata=ana.metadata)
    await pair.until_elsewhere(viewer, ana, "")


@pytest.mark.unsupported_in(
    "no-redis", "valkey-cluster", reason="ends the subscriptions of one Redis"
)
async def test_log_out_reaches_every_process_without_redis(
    pair: Pair, servers: Servers
) -> None:
    """R22: a lost wake-up message delays it by a second at most."""
    ana = await pair.local.signed_in()
    assert await pair.accepts(ana.tokens.access_token)
    for url in primary_urls(servers.redis_url):
        with redis.Redis.from_url(url) as client:
            client.client_kill_filter(_type="pubsub")
    await pair.local.auth.Logout(auth_pb2.LogoutRequest(), metadata=ana.metadata)
    async with asyncio.timeout(1):
        accepted = True
        while accepted:
            accepted = await pair.accepts(ana.tokens.access_token)
