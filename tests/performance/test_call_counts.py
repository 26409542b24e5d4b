"""Python calls of warm requests: exact counts, which a busy machine cannot hide.

Counted are the functions of this repository, from the ASGI application or the port to
the response: with logging as in production, without the network.
"""

import io
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import FrameType

import pytest
import pytest_asyncio

from blatam.user.v1 import user_pb2
from server.observability import logging as service_log
from server.observability.logging import LogFormat, build_pipeline
from tests.edge.service import raw
from tests.running import RunningService, running

ROOT = Path(__file__).parents[2]
PACKAGES = (f"{ROOT}/edge/", f"{ROOT}/server/")
ROUNDS = 20
TOLERANCE = 8  # newer Pythons run comprehensions without a call
REST_GET_USER = 81
CHAIN_GET_USER = 55
GET_USER = "/blatam.user.v1.UserService/GetUser"


@pytest_asyncio.fixture
async def service(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningService]:
    """Start the application, with the log lines of production."""
    pipeline = build_pipeline("info", LogFormat.JSON, (), io.BytesIO())
    monkeypatch.setattr(service_log, "_pipeline", pipeline)
    async with running(database_url, redis_url) as service:
        yield service


async def count_calls(request: Callable[[], Awaitable[object]]) -> int:
    """Return the calls of one request, the smallest of several counts."""
    count = 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGES):
            count += 1

    counts = []
    for _ in range(ROUNDS):
        count = 0
        sys.setprofile(profile)
        try:
            await request()
        finally:
            sys.setprofile(None)
        counts.append(count)
    return min(counts)


async def test_rest_get_user_makes_as_many_calls_as_before(
    service: RunningService,
) -> None:
    user = await service.signed_in()
    headers = [
        (b"host", b"academy.test"),
        (b"accept", b"*/*"),
        (b"user-agent", b"curl/8.5.0"),
        (b"authorization", user.headers["authorization"].encode()),
    ]
    path = f"/api/v1/users/{user.user.id}"

    async def request() -> None:
        status, _, _ = await raw(service.app, "GET", path, headers)
        assert status == 200

    calls = await count_calls(request)
    assert REST_GET_USER - TOLERANCE <= calls <= REST_GET_USER


async def test_chain_of_get_user_makes_as_many_calls_as_before(
    service: RunningService,
) -> None:
    user = await service.signed_in()
    message = user_pb2.GetUserRequest(id=user.user.id).SerializeToString()

    async def request() -> None:
        await service.port.unary(
            GET_USER, message, metadata=user.metadata, timeout=10.0
        )

    calls = await count_calls(request)
    assert CHAIN_GET_USER - TOLERANCE <= calls <= CHAIN_GET_USER
