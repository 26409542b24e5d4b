"""`academy serve` while Postgres is away: up, not serving, and soon serving."""

import asyncio
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from tests.conftest import Servers, run, url_of
from tests.processes import FREE_PORTS, serving
from tests.silent_proxy import silent_proxy

ROOT = Path(__file__).parents[2]
RECOVERY_SECONDS = 2.0
MARGIN_SECONDS = 1.0  # of a busy machine
SECONDS = 30
SECRET_KEY = "0123456789abcdef" * 2


async def test_serve_waits_for_postgres(database_url: str, redis_url: str) -> None:
    """NOT_SERVING, 503 and UNAVAILABLE before; all calls within 2 s after."""
    async with silent_proxy(database_url) as proxy:
        await proxy.stop()
        settings = {
            "DATABASE_URL": proxy.url,
            "REDIS_URL": redis_url,
            "SECRET_KEY": SECRET_KEY,
        }
        async with serving(settings) as process, httpx.AsyncClient() as http:
            health: Any = health_pb2_grpc.HealthStub(process.channel)
            request = health_pb2.HealthCheckRequest()
            reply = await health.Check(request)
            assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await http.get(f"{process.rest}/readyz")).status_code == 503
            headers = {"authorization": "Bearer e30.e30.e30"}
            for path in ("/api/v1/users/me", "/.well-known/jwks.json"):
                url = f"{process.rest}{path}"
                assert (await http.get(url, headers=headers)).status_code == 503
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await UserServiceStub(process.channel).GetUser(
                    user_pb2.GetUserRequest(id=1)
                )
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            await proxy.start()
            started = time.monotonic()
            async with asyncio.timeout(SECONDS):
                while (  # noqa: ASYNC110 - asked by HTTP
                    await http.get(f"{process.rest}/readyz")
                ).status_code != 200:
                    await asyncio.sleep(0.02)
            assert time.monotonic() - started < RECOVERY_SECONDS + MARGIN_SECONDS
            reply = await health.Check(request)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
            keys = await http.get(f"{process.rest}/.well-known/jwks.json")
            assert len(keys.json()["keys"]) == 2


async def test_serve_ends_when_the_schema_of_a_late_postgres_is_old(
    servers: Servers, admin: AsyncEngine, redis_url: str
) -> None:
    """It exits with the sentence that it exits with when Postgres is there at once."""
    name = f"old_{uuid.uuid4().hex[:8]}"
    await run(admin, f"create database {name}")
    async with silent_proxy(url_of(servers, name)) as proxy:
        await proxy.stop()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server", "serve"),
            cwd=ROOT,
            env={
                "DATABASE_URL": proxy.url,
                "REDIS_URL": redis_url,
                "SECRET_KEY": SECRET_KEY,
                **FREE_PORTS,
            },
            stderr=subprocess.PIPE,
        )
        assert process.stderr
        async with asyncio.timeout(SECONDS):
            while b'"listening"' not in await process.stderr.readline():
                pass
            await proxy.start()
            output = await process.stderr.read()
            assert await process.wait() == 1
    assert b"schema is older than this release: run academy migrate" in output
    assert b"Traceback" not in output
    await run(admin, f"drop database {name} with (force)")
