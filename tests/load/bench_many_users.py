"""Creating and exporting many accounts (P13)."""

import asyncio
import os
import statistics
import time
from datetime import UTC, datetime
from itertools import count
from typing import Any

import grpc
import psutil
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from server.domain.accounts.users import NewUser, Role
from server.domain.clock import system_clock
from server.domain.credentials.revocations import Revocations
from server.store.accounts.users import PostgresUsers
from server.store.connections.connect import Database
from server.store.credentials.revocations import RevocationFeed
from server.store.redis.redis_client import redis_client
from tests.load.row import ResultRow
from tests.load.service import ANA, Service, running

ROWS = 1_000
SINGLES = 200
ROUNDS = 7
EXPORTED = int(os.environ.get("BENCH_EXPORTED", "100000"))
HASH = "$argon2id$v=19$m=19456,t=2,p=1$" + "A" * 22 + "$" + "A" * 43
MIB = 1024 * 1024
_numbers = count()


async def rows() -> list[ResultRow]:
    """Return P13: a batch against single inserts, and the memory of an export."""
    with running() as service:
        database = Database(service.database)
        metadata = await _admin(service, database)
        async with grpc.aio.insecure_channel(service.grpc) as channel:
            users = UserServiceStub(channel)
            rows = [
                await _batches(users, metadata, database),
                await _export(users, metadata, database, service.process),
            ]
        await database.close()
    return rows


async def _admin(service: Service, database: Database) -> Any:
    """Make ana an admin; return the metadata of her calls."""
    promoted = sa.text("update users set role = 3 where id = :id")
    async with database.transaction() as connection:
        await connection.execute(promoted, {"id": service.user})
    login = auth_pb2.LoginRequest(identifier=ANA["username"], password=ANA["password"])
    async with grpc.aio.insecure_channel(service.grpc) as channel:
        answer = await AuthServiceStub(channel).Login(login)
    return (("authorization", f"Bearer {answer.tokens.access_token}"),)


async def _batches(users: Any, metadata: Any, database: Database) -> ResultRow:
    """Time whole calls of 1,000 rows against inserts of one row, in turn."""
    feed = RevocationFeed(
        database,
        redis_client("unix:///nowhere"),
        Revocations(system_clock),
        system_clock,
    )
    store = PostgresUsers(database, feed)
    await _batch(users, metadata)
    await _singles(store)
    pairs = [
        (await _batch(users, metadata), await _singles(store)) for _ in range(ROUNDS)
    ]
    together = statistics.median(batch for batch, _ in pairs)
    alone = statistics.median(single for _, single in pairs)
    return ResultRow(
        "P13 BatchCreateUsers of 1,000 / single inserts",
        statistics.median(single / batch for batch, single in pairs),
        20,
        unit="rows a second",
        notes=f"{together:.0f} / {alone:.0f} us a row",
    )


async def _batch(users: Any, metadata: Any) -> float:
    """Return the microseconds per row of one call."""
    new = [
        user_pb2.NewUser(email=f"{name}@x.co", username=name, password_hash=HASH)
        for name in _names(ROWS)
    ]
    request = user_pb2.BatchCreateUsersRequest(users=new)
    started = time.perf_counter()
    answer = await users.BatchCreateUsers(request, metadata=metadata)
    seconds = time.perf_counter() - started
    assert all(outcome.user.id for outcome in answer.outcomes)
    return seconds / ROWS * 1e6


async def _singles(store: PostgresUsers) -> float:
    """Return the microseconds of one insert in its own transaction."""
    now = datetime.now(UTC)
    new = [NewUser(f"{n}@x.co", n, HASH, Role.STUDENT, now) for n in _names(SINGLES)]
    started = time.perf_counter()
    for user in new:
        await store.add(user)
    return (time.perf_counter() - started) / SINGLES * 1e6


def _names(size: int) -> list[str]:
    return [f"bench_{next(_numbers)}" for _ in range(size)]


async def _export(
    users: Any, metadata: Any, database: Database, process: int
) -> ResultRow:
    """Export many accounts; return how much memory the server took after a warm-up."""
    insert = sa.text(
        "insert into users (email, username, username_folded, hashed_password, role,"
        " created_at, updated_at)"
        " select 'f' || n || '@x.co', 'f' || n, 'f' || n, '', 1, now(), now()"
        " from generate_series(1, :count) n"
    )
    async with database.alone(transaction=True) as connection:
        await connection.execute(insert, {"count": EXPORTED})
    server, sizes, received = psutil.Process(process), list[int](), 0
    request = user_pb2.ExportUsersRequest()
    started = time.perf_counter()
    stream = users.ExportUsers(request, metadata=metadata)
    async for _ in stream:
        received += 1
        if received % (EXPORTED // 20) == 0:
            sizes.append(server.memory_info().rss)
            await asyncio.sleep(0)
    seconds = time.perf_counter() - started
    growth = (max(sizes[2:]) - sizes[1]) / MIB
    return ResultRow(
        f"P13 ExportUsers of {EXPORTED:,}: memory growth",
        growth,
        8,
        better="lower",
        unit="MiB",
        notes=f"{received / seconds:,.0f} users/s",
    )
