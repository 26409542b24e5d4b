"""Redis that is away, silent, flushed or failing: calls succeed, limits hold."""

import asyncio

import httpx
import pytest

from tests.fault_proxy import FaultProxy, fault_proxy, to_address, to_redis
from tests.load.faults.ledger import Ledger
from tests.load.faults.traffic import (
    Client,
    list_posts,
    read_self,
    rename,
    renew_session,
    sign_up,
    write_post,
)
from tests.redis_nodes import flush
from tests.running import NO_LIMITS, PASSWORD, running

pytestmark = pytest.mark.unsupported_in(
    "no-redis", "valkey-cluster", reason="puts a proxy in front of one Redis"
)
LOGIN = "blatam.auth.v1.AuthService/Login"
LOG_IN_LIMIT = 5  # of the contract, per minute
# Counted in Redis, and never reached.
HIGH_LIMIT = {**NO_LIMITS, LOGIN: [{"by": ["address"], "limit": 1000, "per": "60s"}]}
CONTRACT_LIMITS = {name: rules for name, rules in NO_LIMITS.items() if name != LOGIN}


async def refuse_commands(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer as a Redis that is loading its data."""
    while await reader.read(65536):
        writer.write(b"-LOADING Redis is loading the dataset in memory\r\n")
    writer.close()


async def test_calls_succeed_while_redis_fails(
    database_url: str, redis_server_url: str
) -> None:
    """L7, R8: whichever way it fails; the service notices that it is back."""
    refusing = await asyncio.start_server(refuse_commands, "127.0.0.1", 0)
    port = refusing.sockets[0].getsockname()[1]
    async with (
        fault_proxy(to_redis(redis_server_url)) as proxy,
        running(database_url, url_of(proxy), rate_limits=HIGH_LIMIT) as service,
    ):
        client, ledger = Client(service.channel), Ledger()
        member = await sign_up(client, ledger, "member")

        async def call() -> None:
            for operation in (
                *(read_self, list_posts, write_post, renew_session, rename),
            ):
                await operation(client, ledger, member)

        await proxy.stop()
        await call()
        await proxy.start()
        proxy.silent = True
        await call()
        proxy.silent = False
        flush(redis_server_url)
        await call()
        proxy.connect = to_address(f"127.0.0.1:{port}")
        await proxy.reset()
        await call()
    assert not client.failures, client.summary()
    refusing.close()


async def test_log_ins_are_limited_while_redis_is_away(
    database_url: str, redis_server_url: str
) -> None:
    """L7, R5, R8: each process verifies as many passwords as the contract allows."""
    async with fault_proxy(to_redis(redis_server_url)) as proxy:
        await proxy.stop()
        async with running(
            database_url, url_of(proxy), rate_limits=CONTRACT_LIMITS
        ) as service:
            await service.sign_up("victim")
            body = {"identifier": "victim", "password": PASSWORD + "x"}
            responses: list[httpx.Response] = [
                await service.http.post("/api/v1/auth/login", json=body)
                for _ in range(LOG_IN_LIMIT + 2)
            ]
    statuses = [response.status_code for response in responses]
    assert statuses == [401] * LOG_IN_LIMIT + [429] * 2


def url_of(proxy: FaultProxy) -> str:
    """Return the URL of Redis through the proxy."""
    return f"redis://{proxy.address}"
