"""1,000,000 users against 1,000: calls must not cost more (P9).

`BENCH_USERS` is the larger number. `BENCH_FOLDER` names a folder that keeps the
databases for the next run, because seeding takes many minutes.
"""

import os
import random
import re
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import orjson
import psutil
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from server.domain.accounts.users import UserFilter
from server.domain.credentials.secret_key import SecretKey
from server.domain.paging import PageTokens, Position, Sort
from server.store.connections.connect import Database
from tests.load.row import ResultRow
from tests.load.service import ACADEMY, Service, running

FEW = 1_000
MANY = int(os.environ.get("BENCH_USERS", "1000000"))
ROUNDS = 15
SIZE = 20
MIN_RATIO = 0.95
MAX_RATIO = 1.2
SORT_KEYS = ("id", "created_at", "username")


@dataclass(slots=True)
class Dataset:
    """A service with seeded members, and the stubs to call it."""

    service: Service
    password: str
    database: Database
    users: Any
    auth: Any
    members: list[tuple[int, str]] = field(default_factory=list)  # in random order
    refresh_tokens: list[str] = field(default_factory=list)
    position: int = 0

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of calls by the signed-in user."""
        return tuple(self.service.bearer.items())

    def next_members(self, count: int) -> list[tuple[int, str]]:
        """Return ids and usernames of the next members, again from the beginning."""
        start = self.position
        self.position += count
        return [
            self.members[n % len(self.members)] for n in range(start, start + count)
        ]

    def cpu_seconds(self) -> dict[int, float]:
        """Return the CPU time of each process: the service, Postgres and Valkey."""
        server = psutil.Process(self.service.process)
        seconds: dict[int, float] = {}
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
        return seconds


@dataclass(frozen=True, slots=True)
class Sample:
    """What one call took."""

    cpu_ms: float
    wall_ms: float


Calls = Callable[[Dataset, int], Awaitable[object]]


async def rows() -> list[ResultRow]:
    """Return P9."""
    with seeded(FEW) as (few, few_password), seeded(MANY) as (many, many_password):
        async with (
            grpc.aio.insecure_channel(few.grpc) as near,
            grpc.aio.insecure_channel(many.grpc) as far,
        ):
            small = await _dataset(few, few_password, near)
            large = await _dataset(many, many_password, far)
            results = [await _last_page(large, key) for key in SORT_KEYS]
            results += [
                await _compared("GetUser", small, large, _get_users, 300),
                await _compared("BatchGetUsers of 1", small, large, _read_users, 300),
                await _compared("Login", small, large, _log_in, 20),
                await _compared("RefreshToken", small, large, _refresh, 100),
            ]
            await small.database.close()
            await large.database.close()
    return results


@contextmanager
def seeded(count: int) -> Iterator[tuple[Service, str]]:
    """Start a service with so many members; yield it and their password."""
    kept = os.environ.get("BENCH_FOLDER")
    with running(Path(kept) / str(count) if kept else None) as service:
        password = service.folder / "password"
        if not password.exists():
            password.write_text(_seed(service, count))
        yield service, password.read_text()


def _seed(service: Service, count: int) -> str:
    command = [*ACADEMY, "bench-seed", "--users", str(count), "--add"]
    env = os.environ | {"STATE_DIR": str(service.folder / "state")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    password = re.search(r"password of every member: (\S+)", done.stdout)
    if done.returncode or not password:
        raise RuntimeError(f"bench-seed failed:\n{done.stdout}{done.stderr}")
    return password[1]


async def _dataset(service: Service, password: str, channel: Any) -> Dataset:
    """Choose as many members as the small database has."""
    database = Database(service.database)
    users, auth = UserServiceStub(channel), AuthServiceStub(channel)
    newest = sa.text("select max(id) from users")
    query = sa.text(
        "select id, username from users where id = any(:ids) and is_active"
        " and email like '%@bench.invalid'"
    )
    async with database.alone() as connection:
        last = (await connection.execute(newest)).scalar_one()
        ids = random.sample(range(1, last), min(last - 1, FEW))
        found = (await connection.execute(query, {"ids": ids})).all()
    members = [(row.id, row.username) for row in found]
    random.shuffle(members)
    return Dataset(service, password, database, users, auth, members)


async def _last_page(dataset: Dataset, key: str) -> ResultRow:
    """Compare the last page with the first, of one list, in turn."""
    first = user_pb2.ListUsersRequest(page_size=SIZE, sort_by=key)
    token = await _last_token(dataset, key)
    last = user_pb2.ListUsersRequest(page_size=SIZE, sort_by=key, page_token=token)
    page = await dataset.users.ListUsers(last, metadata=dataset.metadata)
    assert len(page.items) == SIZE
    assert not page.has_next

    def listing(request: user_pb2.ListUsersRequest) -> Calls:
        async def calls(dataset: Dataset, count: int) -> None:
            for _ in range(count):
                page = await dataset.users.ListUsers(request, metadata=dataset.metadata)
                assert len(page.items) == SIZE

        return calls

    pairs = await _pairs((dataset, listing(first)), (dataset, listing(last)), 20)
    return ResultRow(
        f"P9 ListUsers by {key}, last page of {MANY:,} / first",
        statistics.median(b.wall_ms / a.wall_ms for a, b in pairs),
        MAX_RATIO,
        better="lower",
        unit="by time",
        notes=_notes(pairs),
    )


async def _last_token(dataset: Dataset, key: str) -> str:
    """Return the token of the last page.

    It is made with the service's key: to reach it takes 50,000 pages.
    """
    column = "username_folded" if key == "username" else key
    query = sa.text(
        f"select id, {column} as value from users where deleted_at is null"
        f" order by {column} desc, id desc offset :size limit 1"
    )
    async with dataset.database.reading() as connection:
        row = (await connection.execute(query, {"size": SIZE})).one()
    value = row.value.isoformat() if key == "created_at" else str(row.value)
    secret = (dataset.service.folder / "state" / "secret_key").read_text().strip()
    tokens = PageTokens(SecretKey(secret).mac("page-tokens"))
    context = ["users", f"user:{dataset.service.user}", UserFilter(), Sort(key)]
    return tokens.make(Position(value, row.id), orjson.dumps(context, default=str))


async def _compared(
    name: str, small: Dataset, large: Dataset, calls: Calls, count: int
) -> ResultRow:
    pairs = await _pairs((small, calls), (large, calls), count)
    return ResultRow(
        f"P9 {name} of {MANY:,} users / of {FEW:,}",
        statistics.median(a.cpu_ms / b.cpu_ms for a, b in pairs),
        MIN_RATIO,
        unit="by CPU, with Postgres",
        notes=_notes(pairs),
    )


async def _pairs(
    first: tuple[Dataset, Calls], second: tuple[Dataset, Calls], count: int
) -> list[tuple[Sample, Sample]]:
    """Measure both, in reverse order every other round; the first is a warm-up."""
    pairs = []
    for number in range(ROUNDS + 1):
        order = (first, second) if number % 2 else (second, first)
        samples = [await _sample(*calls, count) for calls in order]
        pairs.append(
            (samples[0], samples[1]) if number % 2 else (samples[1], samples[0])
        )
    return pairs[1:]


async def _sample(dataset: Dataset, calls: Calls, count: int) -> Sample:
    before, started = dataset.cpu_seconds(), time.perf_counter()
    await calls(dataset, count)
    wall = time.perf_counter() - started
    after = dataset.cpu_seconds()
    cpu = sum(seconds - before.get(pid, 0) for pid, seconds in after.items())
    return Sample(cpu / count * 1000, wall / count * 1000)


def _notes(pairs: Sequence[tuple[Sample, Sample]]) -> str:
    first, second = (
        f"{statistics.median(s.cpu_ms for s in samples):.2f} ms CPU,"
        f" {statistics.median(s.wall_ms for s in samples):.2f} ms"
        for samples in zip(*pairs, strict=True)
    )
    return f"{first} / {second} a call"


async def _get_users(dataset: Dataset, count: int) -> None:
    """Read members that a cache holds after the first round."""
    for user_id, _ in dataset.next_members(count):
        request = user_pb2.GetUserRequest(id=user_id)
        answer = await dataset.users.GetUser(request, metadata=dataset.metadata)
        assert answer.user.id == user_id


async def _read_users(dataset: Dataset, count: int) -> None:
    """Read members from Postgres: this RPC uses no cache."""
    for user_id, _ in dataset.next_members(count):
        request = user_pb2.BatchGetUsersRequest(ids=[user_id])
        answer = await dataset.users.BatchGetUsers(request, metadata=dataset.metadata)
        assert answer.users[0].id == user_id


async def _log_in(dataset: Dataset, count: int) -> None:
    """Log in members; at most five times a minute each."""
    for _, username in dataset.next_members(count):
        request = auth_pb2.LoginRequest(identifier=username, password=dataset.password)
        answer = await dataset.auth.Login(request)
        assert answer.tokens.refresh_token
        dataset.refresh_tokens.append(answer.tokens.refresh_token)


async def _refresh(dataset: Dataset, count: int) -> None:
    """Refresh the sessions of the log-ins, each with its newest token."""
    tokens = dataset.refresh_tokens
    for number in range(count):
        index = (dataset.position + number) % len(tokens)
        request = auth_pb2.RefreshTokenRequest(refresh_token=tokens[index])
        answer = await dataset.auth.RefreshToken(request)
        tokens[index] = answer.tokens.refresh_token
    dataset.position += count
