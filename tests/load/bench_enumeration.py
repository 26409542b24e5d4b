"""Whether response times reveal accounts (R2, R3): the AUC of known against unknown.

0.5 reveals nothing; 0 and 1 reveal every account. Single calls are timed, for known
and unknown accounts in random order, idle and while other users log in. In the same
way, accounts with a second factor are compared with accounts without one.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import Any

import cbor2
import grpc
import sqlalchemy as sa
from google.protobuf.json_format import MessageToDict

from blatam.auth.v1 import auth_pb2 as pb
from blatam.auth.v1 import factor_pb2, login_code_pb2
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from server.domain.credentials.passwords import PasswordHasher
from server.store.connections.connect import Database
from server.workers.hashing import HashingPool
from tests.load import service
from tests.load.row import ResultRow
from tests.software_passkey import SoftwarePasskey, encode

SAMPLES = 500  # known and unknown each; the standard error of an AUC is 0.018
LOAD_CLIENTS = 2
CALLS_PER_ACCOUNT = 4  # five log-ins of an account per minute are verified
ACCOUNTS = 2 * SAMPLES // CALLS_PER_ACCOUNT
MAX_DISTANCE = 0.05
PASSWORD = "Blue7horse"
LIFTED: dict[str, list[object]] = {
    f"blatam.auth.v1.AuthService/{name}": []
    for name in (
        "Login",
        "RequestPasswordReset",
        "RequestLoginCode",
        "ChangeEmail",
        "BeginPasskeyLogin",
        "CompletePasskeyLogin",
    )
}
_numbers = count()
Request = Callable[[str], Awaitable[object]]
Names = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Groups:
    """Two groups of accounts that nobody may tell apart, with names for their calls."""

    labels: tuple[str, str]
    first: Names
    second: Names


EXISTENCE = Groups(
    ("known", "unknown"),
    lambda number: f"known{number % ACCOUNTS}",
    lambda _: f"unknown{next(_numbers)}",
)
FACTORS = Groups(
    ("with a factor", "without"),
    lambda number: f"guarded{number % ACCOUNTS}",
    lambda number: f"plain{number % ACCOUNTS}",
)
_PASSKEY = SoftwarePasskey()
_PASSKEYS = sa.text(
    "insert into factors (user_id, type, name, credential_id, public_key, created_at,"
    " confirmed_at)"
    " select users.id, 2, 'Passkey', convert_to('known' || n, 'UTF8'), :key, now(),"
    f" now() from generate_series(0, {ACCOUNTS - 1}) n"
    " join users on username = 'owner' || n"
)


async def rows() -> list[ResultRow]:
    """Return the distance of each AUC from 0.5."""
    service.LIFTED.update(LIFTED)
    with service.running() as started:
        database = Database(started.database)
        await _create_accounts(database)
        await database.close()
        async with grpc.aio.insecure_channel(started.grpc) as channel:
            auth = AuthServiceStub(channel)
            log_in, reset = _log_in(auth), _reset(auth)
            rows = [await _row("R2 Login, idle", log_in)]
            async with _load(auth):
                rows.append(await _row("R2 Login, under load", log_in))
            rows.append(await _row("R2 Login, second factor", log_in, FACTORS))
            rows.append(await _row("R3 RequestPasswordReset", reset))
            rows.append(await _row("R3 RequestLoginCode", _login_code(auth)))
            change = await _change_email(auth)
            rows.append(await _row("R3 ChangeEmail", change))
            passkey = _passkey_log_in(auth)
            rows.append(await _row("R2 CompletePasskeyLogin", passkey))
    return rows


async def _create_accounts(database: Database) -> None:
    """Create the known accounts, all with PASSWORD."""
    pool = HashingPool()
    hashed = await PasswordHasher(pool).hash(PASSWORD)
    pool.close()
    insert = sa.text(
        "insert into users (email, username, username_folded, hashed_password, role,"
        " created_at, updated_at)"
        " select name || '@x.co', name, name, :hash, 1, now(), now()"
        " from generate_series(0, :last) n, concat(cast(:prefix as text), n) name"
    )
    add_factors = sa.text(
        "insert into factors (user_id, type, name, secret, created_at, confirmed_at)"
        " select id, 1, 'phone', 'secret', now(), now() from users"
        " where username like 'guarded%'"
    )
    async with database.transaction() as connection:
        for prefix, last in (
            ("known", 3 * ACCOUNTS),
            ("guarded", ACCOUNTS),
            ("plain", ACCOUNTS),
            ("owner", ACCOUNTS),
        ):
            values = {"hash": hashed, "prefix": prefix, "last": last}
            await connection.execute(insert, values)
        await connection.execute(add_factors)
        await connection.execute(_PASSKEYS, {"key": cbor2.dumps(_PASSKEY.cose())})


def _log_in(auth: Any) -> Request:
    async def send(name: str) -> object:
        request = pb.LoginRequest(identifier=name, password="Wrong7horse")
        try:
            await auth.Login(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return error
            raise
        raise AssertionError("a wrong password was accepted")

    return send


def _passkey_log_in(auth: Any) -> Request:
    """Return a request that another key has signed than that of the passkey."""
    forger = SoftwarePasskey()

    async def send(name: str) -> object:
        begun = await auth.BeginPasskeyLogin(factor_pb2.BeginPasskeyLoginRequest())
        response = forger.get(MessageToDict(begun.options))
        response["id"] = response["rawId"] = encode(name.encode())
        request = factor_pb2.CompletePasskeyLoginRequest()
        request.response.update(response)
        try:
            await auth.CompletePasskeyLogin(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return error
            raise
        raise AssertionError("a wrong signature was accepted")

    return send


def _reset(auth: Any) -> Request:
    return lambda name: auth.RequestPasswordReset(
        pb.RequestPasswordResetRequest(identifier=name)
    )


def _login_code(auth: Any) -> Request:
    return lambda name: auth.RequestLoginCode(
        login_code_pb2.RequestLoginCodeRequest(identifier=name)
    )


async def _change_email(auth: Any) -> Request:
    """Return a request for a taken or a free address, by callers in turn."""
    callers = [await _signed_in(auth, 2 * ACCOUNTS + n) for n in range(ACCOUNTS)]
    turns = iter(callers * CALLS_PER_ACCOUNT)

    async def send(name: str) -> object:
        request = pb.ChangeEmailRequest(
            new_email=f"{name}@x.co", current_password=PASSWORD
        )
        return await auth.ChangeEmail(request, metadata=next(turns))

    return send


async def _signed_in(auth: Any, number: int) -> Any:
    request = pb.LoginRequest(identifier=f"known{number}", password=PASSWORD)
    tokens = (await auth.Login(request)).tokens
    return (("authorization", f"Bearer {tokens.access_token}"),)


@asynccontextmanager
async def _load(auth: Any) -> AsyncIterator[None]:
    """Let other clients log in all the time, to accounts that do not exist."""
    send = _log_in(auth)

    async def repeat() -> None:
        while True:
            await send(f"other{next(_numbers)}")

    tasks = [asyncio.create_task(repeat()) for _ in range(LOAD_CLIENTS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds of the calls for accounts of the first group, and of the second one."""

    first: Sequence[float]
    second: Sequence[float]

    @property
    def auc(self) -> float:
        """How often a call for the first group took longer than one for the second."""
        ranked = sorted([*((s, 1) for s in self.first), *((s, 0) for s in self.second)])
        ranks = sum(rank for rank, (_, is_first) in enumerate(ranked, 1) if is_first)
        lowest = len(self.first) * (len(self.first) + 1) / 2
        return (ranks - lowest) / (len(self.first) * len(self.second))


async def _row(name: str, send: Request, groups: Groups = EXISTENCE) -> ResultRow:
    durations = await _timed(send, groups)
    medians = [median(each) * 1e3 for each in (durations.first, durations.second)]
    labels = groups.labels
    return ResultRow(
        f"{name}: AUC from 0.5",
        abs(durations.auc - 0.5),
        MAX_DISTANCE,
        better="lower",
        notes=f"AUC {durations.auc:.3f}; medians {medians[0]:.2f} {labels[0]}, "
        f"{medians[1]:.2f} ms {labels[1]}",
    )


async def _timed(send: Request, groups: Groups) -> Durations:
    """Time calls in random order."""
    seconds: tuple[list[float], list[float]] = [], []
    names = [(groups.first(n), seconds[0]) for n in range(SAMPLES)]
    names += [(groups.second(n), seconds[1]) for n in range(SAMPLES)]
    random.shuffle(names)
    for name, durations in names:
        started = time.perf_counter()
        await send(name)
        durations.append(time.perf_counter() - started)
    return Durations(*seconds)
