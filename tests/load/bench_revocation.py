"""How soon another process refuses what one has revoked (R22), with Redis and without.

Two processes over one database. The time runs from the answer to whoever revokes until
the other process answers the access token with UNAUTHENTICATED.
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
from server.store.connect import Database
from server.store.migrate import upgrade
from tests.load.row import Row
from tests.mailbox import mailbox
from tests.processes import serving
from tests.running import NO_LIMITS, PASSWORD

ROUNDS = 25
BAR_SECONDS = 1.0
NEW = "Green8horse"
ME = user_pb2.GetCurrentUserRequest()
_numbers = count()


@dataclass(frozen=True, slots=True)
class Processes:
    """Where something is revoked, and where it must be refused."""

    here: Any
    auth: Any
    there: Any
    root: Any


@dataclass(frozen=True, slots=True)
class Who:
    """Somebody with a session, and with another one that is to end."""

    id: int
    bearer: Any
    other: Any


Revoke = Callable[[Processes, Who], Awaitable[object]]


def rows() -> list[Row]:
    """Give the p99 of the delay."""
    with TemporaryDirectory(prefix="blatam-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres runs by an account of its own
        servers = EmbeddedServers(folder)
        try:
            database_url, redis_url = servers.start_postgres(), servers.start_valkey()
            nowhere = "redis://127.0.0.1:1"
            return asyncio.run(_measured(database_url, redis_url, nowhere))
        finally:
            servers.stop()


async def _measured(database_url: str, redis_url: str, nowhere: str) -> list[Row]:
    await upgrade(Database(database_url))
    found = []
    for told, url in (("with Redis", redis_url), ("without Redis", nowhere)):
        async with mailbox() as box, _processes(database_url, url, box.url) as both:
            seen = {name: await _delays(both, how) for name, how in REVOKED.items()}
        found.append(_row(told, seen))
    return found


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
        there = user_pb2_grpc.UserServiceStub(second.channel)
        root = await _root(users, auth, database_url)
        yield Processes(users, auth, there, root)


async def _root(users: Any, auth: Any, database_url: str) -> Any:
    name = await _signed_up(users)
    database = Database(database_url)
    promoted = sa.text("update users set role = 3 where username = :name")
    async with database.transaction() as connection:
        await connection.execute(promoted, {"name": name[1]})
    await database.close()
    return await _session(auth, name[1])


async def _signed_up(users: Any) -> tuple[int, str]:
    name = f"somebody{time.time_ns()}"
    request = user_pb2.CreateUserRequest(
        email=f"{name}@example.com", username=name, password=PASSWORD
    )
    return (await users.CreateUser(request)).user.id, name


async def _session(auth: Any, name: str) -> Any:
    login = auth_pb2.LoginRequest(identifier=name, password=PASSWORD)
    tokens = (await auth.Login(login)).tokens
    return (("authorization", f"Bearer {tokens.access_token}"),)


async def _delays(both: Processes, revoke: Revoke) -> list[float]:
    """Give the seconds of ROUNDS revocations."""
    return [await _delay(both, revoke) for _ in range(ROUNDS)]


async def _delay(both: Processes, revoke: Revoke) -> float:
    user_id, name = await _signed_up(both.here)
    who = Who(user_id, await _session(both.auth, name), await _session(both.auth, name))
    await both.there.GetCurrentUser(ME, metadata=who.other)
    await asyncio.sleep(next(_numbers) * 0.1 * math.pi % 0.5)  # at no set time
    await revoke(both, who)
    began, inside = time.perf_counter(), True
    while inside:
        inside = await _let_in(both.there, who.other)
    return time.perf_counter() - began


async def _let_in(users: Any, bearer: Any) -> bool:
    """Tell whether a token serves, if only to hear that its user is gone."""
    try:
        await users.GetCurrentUser(ME, metadata=bearer)
    except grpc.aio.AioRpcError as error:
        return error.code() is not grpc.StatusCode.UNAUTHENTICATED
    return True


def _log_out(both: Processes, who: Who) -> Any:
    return both.auth.Logout(auth_pb2.LogoutRequest(), metadata=who.other)


def _delete(both: Processes, who: Who) -> Any:
    request = user_pb2.DeleteUserRequest(id=who.id)
    return both.here.DeleteUser(request, metadata=who.bearer)


def _disable(both: Processes, who: Who) -> Any:
    request = user_pb2.UpdateUserRequest(user=user_pb2.User(id=who.id))
    request.update_mask.paths.append("is_active")
    return both.here.UpdateUser(request, metadata=both.root)


def _promote(both: Processes, who: Who) -> Any:
    user = user_pb2.User(id=who.id, role=user_pb2.ROLE_TEACHER)
    request = user_pb2.UpdateUserRequest(user=user)
    return both.here.UpdateUser(request, metadata=both.root)


def _change_password(both: Processes, who: Who) -> Any:
    request = auth_pb2.ChangePasswordRequest(
        current_password=PASSWORD, new_password=NEW
    )
    return both.auth.ChangePassword(request, metadata=who.bearer)


REVOKED: dict[str, Revoke] = {
    "logout": _log_out,
    "delete": _delete,
    "disable": _disable,
    "role": _promote,
    "password": _change_password,
}


def _row(told: str, seen: dict[str, list[float]]) -> Row:
    delays = sorted(delay for found in seen.values() for delay in found)
    p99 = delays[math.ceil(len(delays) * 0.99) - 1]
    worst = ", ".join(f"{name} {max(found) * 1e3:.0f}" for name, found in seen.items())
    return Row(
        f"R22 refused elsewhere, {told}: p99",
        p99,
        BAR_SECONDS,
        better="lower",
        unit="s",
        notes=f"median {statistics.median(delays) * 1e3:.0f} ms; worst of "
        f"{ROUNDS} each, ms: {worst}",
    )
