"""How soon another process sees a changed account, with and without Redis.

Two processes share a database. The time runs from the answer to UpdateUser until
GetUser of the other process, which has the account in its cache, returns the change.
"""

import asyncio
import math
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from blatam.auth.v1 import auth_pb2, auth_pb2_grpc
from blatam.user.v1 import user_pb2, user_pb2_grpc
from server.embedded.servers import EmbeddedServers
from server.store.connections.connect import Database
from server.store.migrate import upgrade
from tests.load.row import ResultRow
from tests.processes import serving
from tests.running import NO_LIMITS, PASSWORD

ROUNDS = 150
UNREACHABLE = "redis://127.0.0.1:1"
POLL_SECONDS = 0.4


def rows() -> list[ResultRow]:
    """Return the longest delay under each condition, in seconds."""
    with TemporaryDirectory(prefix="blatam-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres runs under another account
        servers = EmbeddedServers(folder)
        try:
            urls = servers.start_postgres(), servers.start_valkey()
            return asyncio.run(_measured(*urls))
        finally:
            servers.stop()


async def _measured(database_url: str, redis_url: str) -> list[ResultRow]:
    database = Database(database_url)
    await upgrade(database)
    await database.close()
    return [
        await _row("with Redis", database_url, redis_url, 0.1),
        await _row("without Redis", database_url, UNREACHABLE, 0.5),
    ]


async def _row(
    condition: str, database_url: str, redis_url: str, target: float
) -> ResultRow:
    settings = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": "0123456789abcdef" * 2,
        "RATE_LIMITS": orjson.dumps(NO_LIMITS).decode(),
    }
    async with serving(settings) as first, serving(settings) as second:
        writer = user_pb2_grpc.UserServiceStub(first.channel)
        reader = user_pb2_grpc.UserServiceStub(second.channel)
        user, bearer = await _signed_in(
            writer, auth_pb2_grpc.AuthServiceStub(first.channel)
        )
        delays = sorted(
            [await _delay(writer, reader, user, bearer, n) for n in range(ROUNDS)]
        )
    return ResultRow(
        f"change seen by another process, {condition}: max",
        delays[-1],
        target,
        better="lower",
        unit="s",
        notes=f"median {statistics.median(delays) * 1e3:.0f} ms, p99 "
        f"{delays[math.ceil(ROUNDS * 0.99) - 1] * 1e3:.0f} ms of {ROUNDS}",
    )


async def _signed_in(users: Any, auth: Any) -> tuple[int, Any]:
    name = f"member{time.time_ns()}"
    request = user_pb2.CreateUserRequest(
        email=f"{name}@example.com", username=name, password=PASSWORD
    )
    user = (await users.CreateUser(request)).user
    login = auth_pb2.LoginRequest(identifier=name, password=PASSWORD)
    tokens = (await auth.Login(login)).tokens
    return user.id, (("authorization", f"Bearer {tokens.access_token}"),)


async def _delay(
    writer: Any, reader: Any, user_id: int, bearer: Any, number: int
) -> float:
    read = user_pb2.GetUserRequest(id=user_id)
    await reader.GetUser(read, metadata=bearer)
    # at varying moments between two polls
    await asyncio.sleep(number * 0.1 * math.pi % POLL_SECONDS)
    user = user_pb2.User(id=user_id, username=f"renamed{time.time_ns()}")
    await writer.UpdateUser(user_pb2.UpdateUserRequest(user=user), metadata=bearer)
    started = time.perf_counter()
    while (await reader.GetUser(read, metadata=bearer)).user.username != user.username:
        pass
    return time.perf_counter() - started
