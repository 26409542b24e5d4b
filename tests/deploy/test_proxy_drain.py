"""A process behind nginx, Caddy and Envoy stops, and no call fails."""

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx

from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from tests.deploy.proxies import (
    EXAMPLES,
    NEEDS_PROXIES,
    Proxy,
    Replica,
    running_proxy,
)
from tests.load.faults.replicas import Process
from tests.running import NO_LIMITS, PASSWORD, SECRET

SECONDS = 20
pytestmark = NEEDS_PROXIES


@dataclass(slots=True)
class Callers:
    """Callers of one proxy over gRPC and REST, and the calls that failed."""

    proxy: Proxy
    headers: dict[str, str]
    calls: int = 0
    failures: list[str] = field(default_factory=list)
    stopped: bool = False

    async def call_grpc(self) -> None:
        """Call until stopped; the channel retries as the service config says."""
        users = UserServiceStub(self.proxy.channel)
        metadata = tuple(self.headers.items())
        while not self.stopped:
            request = user_pb2.GetCurrentUserRequest()
            try:
                await users.GetCurrentUser(request, metadata=metadata, timeout=SECONDS)
            except grpc.aio.AioRpcError as error:
                self.failures.append(repr(error))
            self.calls += 1

    async def call_rest(self) -> None:
        """Read and write until stopped, without a retry."""
        while not self.stopped:
            await self._request("GET", "/api/v1/users/me")
            await self._request("POST", "/api/v1/posts", {"title": "a", "body": "b"})

    async def _request(self, method: str, path: str, body: Any = None) -> None:
        try:
            response = await self.proxy.rest.request(
                method, path, json=body, headers=self.headers, timeout=SECONDS
            )
        except httpx.HTTPError as error:
            self.failures.append(repr(error))
        else:
            if not response.is_success:
                self.failures.append(f"{method} {path}: {response.text}")
        self.calls += 1

    async def more(self, count: int) -> None:
        """Wait for so many more calls."""
        end = self.calls + count
        async with asyncio.timeout(SECONDS):
            while self.calls < end:  # noqa: ASYNC110 - a number
                await asyncio.sleep(0.01)


async def signed_in(proxy: Proxy) -> dict[str, str]:
    """Return the headers of a new account."""
    account = {"email": "ana@example.com", "username": "ana", "password": PASSWORD}
    created = await proxy.rest.post("/api/v1/users", json=account)
    assert created.status_code == 201, created.text
    body = {"identifier": "ana", "password": PASSWORD}
    tokens = (await proxy.rest.post("/api/v1/auth/login", json=body)).json()
    return {"authorization": f"Bearer {tokens['accessToken']}"}


async def test_stop_of_one_of_two_processes_fails_no_call(
    database_url: str, redis_url: str, state_dir: Path
) -> None:
    """SIGTERM to a process behind all three proxies, each with callers of its own."""
    settings = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": SECRET,
        "RATE_LIMITS": json.dumps(NO_LIMITS),
        "TRUSTED_PROXIES": "127.0.0.1",
        "STATE_DIR": str(state_dir / "state"),
        "LAME_DUCK": "2s",
    }
    stays, leaves = (Process(settings, state_dir / f"{n}.log") for n in range(2))
    replicas = [Replica(p.grpc, p.rest) for p in (leaves, stays)]
    async with AsyncExitStack() as stack:
        for process in (stays, leaves):
            stack.push_async_callback(process.kill)
        await asyncio.gather(stays.start(), leaves.start())
        proxies = [
            await stack.enter_async_context(
                running_proxy(example, replicas, state_dir / example.name)
            )
            for example in EXAMPLES
        ]
        headers = await signed_in(proxies[0])
        callers = [Callers(proxy, headers) for proxy in proxies]
        async with asyncio.TaskGroup() as group:
            for caller in callers:
                group.create_task(caller.call_grpc())
                group.create_task(caller.call_rest())
            await asyncio.gather(*(caller.more(30) for caller in callers))
            assert leaves.calls(), "no proxy uses this process"
            assert await leaves.stop() == 0
            await asyncio.gather(*(caller.more(30) for caller in callers))
            for caller in callers:
                caller.stopped = True
    assert [caller.failures for caller in callers] == [[], [], []]
