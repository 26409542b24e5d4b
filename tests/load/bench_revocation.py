"""How soon another process refuses a revoked session (R22), with and without Redis.

Two processes share a database. The time runs from the answer to the revoking call
until the other process answers the access token with UNAUTHENTICATED.
"""

import asyncio
import json
import math
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2, auth_pb2_grpc
from blatam.user.v1 import user_pb2, user_pb2_grpc
from server.embedded.servers import EmbeddedServers
from server.store.connections.connect import Database
from server.store.migrate import upgrade
from tests.load.row import ResultRow
from tests.mailbox import mailbox
from tests.processes import serving
from tests.running import NO_LIMITS, PASSWORD

ROUNDS = 25
MAX_SECONDS = 1.0
NEW_PASSWORD = "Green8horse"
REQUEST = user_pb2.GetCurrentUserRequest()
_numbers = count()


@dataclass(frozen=True, slots=True)
class Processes:
    """Stubs of the process that revokes and of the one that must refuse."""

    first: Any
    auth: Any
    second: Any
    admin: Any


@dataclass(frozen=True, slots=True)
class SignedInMember:
    """A user with a session, and with another one that is to end."""

    id: int
    bearer: Any
    other: Any


Revoke = Callable[[Processes, SignedInMember], Awaitable[object]]


def rows() -> list[ResultRow]:
    """Return the p99 of the delay."""
    with TemporaryDirectory(prefix="blatam-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres runs under another account
        servers = EmbeddedServers(folder)
        try:
            database_url, redis_url = servers.start_postgres(), servers.start_valkey()
            unreachable = "redis://127.0.0.1:1"
            return asyncio.run(_measured(database_url, redis_url, unreachable))
        finally:
            servers.stop()


async def _measured(
    database_url: str, redis_url: str, unreachable: str
) -> list[ResultRow]:
    await upgrade(Database(database_url))
    rows = []
    for condition, url in (("with Redis", redis_url), ("without Redis", unreachable)):
        async with mailbox() as box, _processes(database_url, url, box.url) as both:
            delays = {name: await _delays(both, how) for name, how in REVOKED.items()}
        rows.append(_row(condition, delays))
    return rows


@asynccontextmanager
async def _processes(
    database_url: str, redis_url: str, smtp_url: str
) -> AsyncIterator[Processes]:
    settings = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": "0123456789abcdef" * 2,
        "SMTP_URL": smtp_url,
        "RATE_LIMITS": json.dumps(NO_LIMITS),
    }
    async with serving(settings) as first, serving(settings) as second:
        users = user_pb2_grpc.UserServiceStub(first.channel)
        auth = auth_pb2_grpc.AuthServiceStub(first.channel)
        other = user_pb2_grpc.UserServiceStub(second.channel)
        admin = await _admin(users, auth, database_url)
        yield Processes(users, auth, other, admin)


async def _admin(users: Any, auth: Any, database_url: str) -> Any:
    name = await _signed_up(users)
    database = Database(database_url)
    promoted = sa.text("update users set role = 3 where username = :name")
    async with database.transaction() as connection:
        await connection.execute(promoted, {"name": name[1]})
    await database.close()
    return await _session(auth, name[1])


async def _signed_up(users: Any) -> tuple[int, str]:
    name = f"member{time.time_ns()}"
    request = user_pb2.CreateUserRequest(
        email=f"{name}@example.com", username=name, password=PASSWORD
    )
    return (await users.CreateUser(request)).user.id, name


async def _session(auth: Any, name: str) -> Any:
    login = auth_pb2.LoginRequest(identifier=name, password=PASSWORD)
    tokens = (await auth.Login(login)).tokens
    return (("authorization", f"Bearer {tokens.access_token}"),)


async def _delays(both: Processes, revoke: Revoke) -> list[float]:
    """Return the seconds of ROUNDS revocations."""
    return [await _delay(both, revoke) for _ in range(ROUNDS)]


async def _delay(both: Processes, revoke: Revoke) -> float:
    user_id, name = await _signed_up(both.first)
    member = SignedInMember(
        user_id, await _session(both.auth, name), await _session(both.auth, name)
    )
    await both.second.GetCurrentUser(REQUEST, metadata=member.other)
    await asyncio.sleep(
        next(_numbers) * 0.1 * math.pi % 0.5
    )  # at varying moments of the poll
    await revoke(both, member)
    started, accepted = time.perf_counter(), True
    while accepted:
        accepted = await _is_accepted(both.second, member.other)
    return time.perf_counter() - started


async def _is_accepted(users: Any, bearer: Any) -> bool:
    """Return whether the token is accepted, even if its user is deleted."""
    try:
        await users.GetCurrentUser(REQUEST, metadata=bearer)
    except grpc.aio.AioRpcError as error:
        return error.code() is not grpc.StatusCode.UNAUTHENTICATED
    return True


def _log_out(both: Processes, member: SignedInMember) -> Any:
    return both.auth.Logout(auth_pb2.LogoutRequest(), metadata=member.other)


def _delete(both: Processes, member: SignedInMember) -> Any:
    request = user_pb2.DeleteUserRequest(id=member.id)
    return both.first.DeleteUser(request, metadata=member.bearer)


def _disable(both: Processes, member: SignedInMember) -> Any:
    request = user_pb2.UpdateUserRequest(user=user_pb2.User(id=member.id))
    request.update_mask.paths.append("is_active")
    return both.first.UpdateUser(request, metadata=both.admin)


def _promote(both: Processes, member: SignedInMember) -> Any:
    user = user_pb2.User(id=member.id, role=user_pb2.ROLE_TEACHER)
    request = user_pb2.UpdateUserRequest(user=user)
    return both.first.UpdateUser(request, metadata=both.admin)


def _change_password(both: Processes, member: SignedInMember) -> Any:
    request = auth_pb2.ChangePasswordRequest(
        current_password=PASSWORD, new_password=NEW_PASSWORD
    )
    return both.auth.ChangePassword(request, metadata=member.bearer)


REVOKED: dict[str, Revoke] = {
    "logout": _log_out,
    "delete": _delete,
    "disable": _disable,
    "role": _promote,
    "password": _change_password,
}


def _row(condition: str, delays: dict[str, list[float]]) -> ResultRow:
    everything = sorted(delay for values in delays.values() for delay in values)
    p99 = everything[math.ceil(len(everything) * 0.99) - 1]
    worst = ", ".join(f"{n} {max(values) * 1e3:.0f}" for n, values in delays.items())
    return ResultRow(
        f"R22 refused elsewhere, {condition}: p99",
        p99,
        MAX_SECONDS,
        better="lower",
        unit="s",
        notes=f"median {statistics.median(everything) * 1e3:.0f} ms; worst of "
        f"{ROUNDS} each, ms: {worst}",
    )
