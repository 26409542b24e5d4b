"""CPU of the service process for a RefreshToken, and for a list of 100 users (P21)."""

import asyncio
import statistics
from collections.abc import Awaitable, Callable

import grpc
import httpx

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from tests.load.loader import cpu_seconds
from tests.load.row import ResultRow
from tests.load.service import ANA, Service, running

ROUNDS = 7
CALLS = 200  # of each round
CALLERS = 4
USERS = 100
Call = Callable[[], Awaitable[object]]


async def rows() -> list[ResultRow]:
    """Return the milliseconds of each."""
    with running() as service:
        async with (
            grpc.aio.insecure_channel(service.grpc) as channel,
            httpx.AsyncClient(base_url=f"http://{service.rest}") as http,
        ):
            return [
                await _refresh(service, AuthServiceStub(channel)),
                await _list(service, UserServiceStub(channel), http),
            ]


async def _refresh(service: Service, stub: AuthServiceStub) -> ResultRow:
    login = auth_pb2.LoginRequest(identifier=ANA["username"], password=ANA["password"])
    calls = [await _refreshing(stub, login) for _ in range(CALLERS)]
    milliseconds = await _milliseconds(service, calls)
    return ResultRow("P21 CPU of a RefreshToken", milliseconds, 1.0, "lower", "ms")


async def _refreshing(stub: AuthServiceStub, login: auth_pb2.LoginRequest) -> Call:
    """Return a function that renews one session, again and again."""
    token = (await stub.Login(login)).tokens.refresh_token

    async def refresh() -> None:
        nonlocal token
        request = auth_pb2.RefreshTokenRequest(refresh_token=token)
        token = (await stub.RefreshToken(request)).tokens.refresh_token

    return refresh


async def _list(
    service: Service, stub: UserServiceStub, http: httpx.AsyncClient
) -> ResultRow:
    for number in range(USERS):
        request = user_pb2.CreateUserRequest(
            email=f"user{number}@example.com",
            username=f"user{number}",
            password=ANA["password"],
        )
        await stub.CreateUser(request)
    url = f"/api/v1/users?page_size={USERS}"

    async def read() -> None:
        response = await http.get(url, headers=service.bearer)
        if len(response.raise_for_status().json()["items"]) != USERS:
            raise RuntimeError("the page is not full")

    milliseconds = await _milliseconds(service, [read] * CALLERS)
    name = "P21 CPU of a list of 100 users over REST"
    return ResultRow(name, milliseconds, 1.2, "lower", "ms")


async def _milliseconds(service: Service, calls: list[Call]) -> float:
    """Return the CPU of the service for one call, the median of several rounds."""

    async def repeat(call: Call) -> None:
        for _ in range(CALLS // len(calls)):
            await call()

    rounds = []
    for _ in range(ROUNDS + 1):
        before = cpu_seconds(service.process)
        await asyncio.gather(*map(repeat, calls))
        rounds.append((cpu_seconds(service.process) - before) / CALLS * 1e3)
    return statistics.median(rounds[1:])  # the first one warms up
