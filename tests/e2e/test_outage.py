"""Postgres that is silent or locked: calls fail fast, and soon work again."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import count

import httpx
import sqlalchemy as sa

from server.store.connections.connect import Database
from tests.environments import environment
from tests.running import PASSWORD, RunningService, running
from tests.silent_proxy import silent_proxy

FAST_SECONDS = 1.0
RECOVERY_SECONDS = 2.0
MARGIN_SECONDS = 0.4  # of a busy machine
LOG_INS = 60
_numbers = count()


async def log_in(service: RunningService) -> tuple[int, float]:
    """Log in to an account that does not exist; return the status and the seconds.

    The status is 401 when Postgres has answered, and no limit per account counts it.
    """
    started = time.monotonic()
    body = {"identifier": f"unknown{next(_numbers)}", "password": PASSWORD}
    response = await service.http.post("/api/v1/auth/login", json=body)
    return response.status_code, time.monotonic() - started


async def seconds_until(status: int, call: Callable[[], Awaitable[int]]) -> float:
    """Repeat a call until it has this status; return how long that took."""
    started = time.monotonic()
    async with asyncio.timeout(30):
        while await call() != status:  # noqa: ASYNC110 - asked by HTTP
            await asyncio.sleep(0.02)
    return time.monotonic() - started


async def test_rest_fails_fast_while_postgres_is_silent(
    database_url: str, redis_url: str
) -> None:
    """503 within a second once one call has found out; then recovery within 2 s."""
    async with (
        silent_proxy(database_url) as proxy,
        running(proxy.url, redis_url) as service,
    ):

        async def readiness() -> int:
            response: httpx.Response = await service.http.get("/readyz")
            return response.status_code

        async def log_in_status() -> int:
            return (await log_in(service))[0]

        await asyncio.gather(*(log_in(service) for _ in range(20)))
        proxy.silent = True
        await log_in(service)
        results = await asyncio.gather(*(log_in(service) for _ in range(20)))
        await seconds_until(503, readiness)
        await asyncio.sleep(2)
        results += [await log_in(service) for _ in range(5)]
        assert {status for status, _ in results} == {503}
        assert max(seconds for _, seconds in results) < FAST_SECONDS + MARGIN_SECONDS
        proxy.silent = False
        recovery = await seconds_until(401, log_in_status)
        recovery += await seconds_until(200, readiness)
        assert recovery < RECOVERY_SECONDS + MARGIN_SECONDS


async def test_log_ins_are_shed_while_users_is_locked(
    database_url: str, redis_url: str
) -> None:
    """None waits for the lock longer than a second; after it, all work again."""
    database = Database(database_url)
    async with running(database_url, redis_url) as service:
        async with database.transaction() as connection:
            await connection.execute(sa.text("lock table users"))
            results = await asyncio.gather(*(log_in(service) for _ in range(LOG_INS)))
        assert {status for status, _ in results} == {503}
        assert max(seconds for _, seconds in results) < FAST_SECONDS + MARGIN_SECONDS

        async def log_in_status() -> int:
            return (await log_in(service))[0]

        if environment() == "pgbouncer":
            # no connection was left to find out that Postgres answers
            recovery = await seconds_until(401, log_in_status)
            assert recovery < RECOVERY_SECONDS + MARGIN_SECONDS
        assert await log_in_status() == 401
    await database.close()
