"""Whether time tells who has an account (R2, R3): the AUC of known against unknown.

0.5 is a coin's; 0 and 1 tell everybody apart. What is timed are single calls, known
and unknown in random order, idle and while others log in.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2 as pb
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from server.domain.credentials.passwords import PasswordHasher
from server.store.connect import Database
from server.workers.hashing import HashingPool
from tests.load import service
from tests.load.row import Row

SAMPLES = 500  # of known and of unknown ones each; one AUC then strays by 0.018
OTHERS = 2  # at once, under load
EACH = 4  # calls of one account: the fifth password of a minute is the last verified
PEOPLE = 2 * SAMPLES // EACH
FAR = 0.05
PASSWORD = "Blue7horse"
LIFTED: dict[str, list[object]] = {
    f"blatam.auth.v1.AuthService/{name}": []
    for name in ("Login", "RequestPasswordReset", "ChangeEmail")
}
_numbers = count()
Ask = Callable[[str], Awaitable[object]]


async def rows() -> list[Row]:
    """Give how far each AUC is from a coin's."""
    service.LIFTED.update(LIFTED)
    with service.running() as started:
        database = Database(started.database)
        await _people(database)
        await database.close()
        async with grpc.aio.insecure_channel(started.grpc) as channel:
            auth = AuthServiceStub(channel)
            log_in, reset = _log_in(auth), _reset(auth)
            found = [await _row("R2 Login, idle", log_in)]
            async with _load(auth):
                found.append(await _row("R2 Login, under load", log_in))
            found.append(await _row("R3 RequestPasswordReset", reset))
            change = await _change_email(auth)
            found.append(await _row("R3 ChangeEmail", change))
    return found


async def _people(database: Database) -> None:
    """Make the accounts that there are, all with PASSWORD."""
    pool = HashingPool()
    hashed = await PasswordHasher(pool).hash(PASSWORD)
    pool.close()
    filled = sa.text(
        "insert into users (email, username, username_folded, hashed_password, role,"
        " created_at, updated_at)"
        " select 'known' || n || '@x.co', 'known' || n, 'known' || n, :hash, 1, now(),"
        " now() from generate_series(0, :last) n"
    )
    async with database.transaction() as connection:
        await connection.execute(filled, {"hash": hashed, "last": 3 * PEOPLE})


def _log_in(auth: Any) -> Ask:
    async def ask(name: str) -> object:
        request = pb.LoginRequest(identifier=name, password="Wrong7horse")
        try:
            await auth.Login(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return error
            raise
        raise AssertionError("a wrong password was let in")

    return ask


def _reset(auth: Any) -> Ask:
    return lambda name: auth.RequestPasswordReset(
        pb.RequestPasswordResetRequest(identifier=name)
    )


async def _change_email(auth: Any) -> Ask:
    """Give what asks for a taken or a free address, EACH times as one caller."""
    callers = [await _signed_in(auth, 2 * PEOPLE + n) for n in range(PEOPLE)]
    turns = iter(callers * EACH)

    async def ask(name: str) -> object:
        request = pb.ChangeEmailRequest(
            new_email=f"{name}@x.co", current_password=PASSWORD
        )
        return await auth.ChangeEmail(request, metadata=next(turns))

    return ask


async def _signed_in(auth: Any, number: int) -> Any:
    request = pb.LoginRequest(identifier=f"known{number}", password=PASSWORD)
    tokens = (await auth.Login(request)).tokens
    return (("authorization", f"Bearer {tokens.access_token}"),)


@asynccontextmanager
async def _load(auth: Any) -> AsyncIterator[None]:
    """Have others log in, one after the other each, as known and unknown."""
    ask = _log_in(auth)

    async def go_on() -> None:
        while True:
            await ask(f"other{next(_numbers)}")

    tasks = [asyncio.create_task(go_on()) for _ in range(OTHERS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Seen:
    """Seconds of the calls that named somebody, and of those that named nobody."""

    known: Sequence[float]
    unknown: Sequence[float]

    @property
    def auc(self) -> float:
        """Give how often a known one took longer than an unknown one."""
        ranked = sorted(
            [*((s, 1) for s in self.known), *((s, 0) for s in self.unknown)]
        )
        ranks = sum(rank for rank, (_, known) in enumerate(ranked, 1) if known)
        least = len(self.known) * (len(self.known) + 1) / 2
        return (ranks - least) / (len(self.known) * len(self.unknown))


async def _row(name: str, ask: Ask) -> Row:
    known, unknown = await _timed(ask)
    seen = Seen(known, unknown)
    middle = sorted(known)[len(known) // 2], sorted(unknown)[len(unknown) // 2]
    return Row(
        f"{name}: AUC from 0.5",
        abs(seen.auc - 0.5),
        FAR,
        better="lower",
        notes=f"AUC {seen.auc:.3f}; medians {middle[0] * 1e3:.2f} known, "
        f"{middle[1] * 1e3:.2f} ms unknown",
    )


async def _timed(ask: Ask) -> tuple[list[float], list[float]]:
    """Time calls in random order."""
    first = next(_numbers)
    names = [(f"known{n % PEOPLE}", 1) for n in range(SAMPLES)]
    names += [(f"nobody{first}_{n}", 0) for n in range(SAMPLES)]
    random.shuffle(names)
    took: tuple[list[float], list[float]] = [], []
    for name, known in names:
        began = time.perf_counter()
        await ask(name)
        took[known].append(time.perf_counter() - began)
    return took[1], took[0]
