"""L11 and L14 to L16: cancelled calls, and the same call at the same time."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import settings_pb2, user_pb2
from tests.fault_proxy import COMMITTED, fault_proxy, proxied_database_url, to_postgres
from tests.load.faults.experiment import at_most, exactly, experiment
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import NONE, SHIPPED, open_channel
from tests.load.faults.replicas import Process, Testbed, testbed
from tests.load.faults.traffic import Client, Member, sign_up_members
from tests.load.row import ResultRow
from tests.running import PASSWORD

CANCELLED_CALLS = 10_000
MEMBERS = 50
CALLS_AT_ONCE = 50
KEYS = 5
SERVER_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


@experiment("L11", max_seconds=240)
async def calls_are_cancelled() -> list[ResultRow]:
    """Cancel calls at random moments; every answer must be about its own caller."""
    async with testbed() as bed:
        replica = await bed.started()
        async with open_channel([replica.grpc], SHIPPED) as channel:
            client = Client(channel)
            members = await sign_up_members(client, Ledger(), "m", MEMBERS)
            client.results.clear()
            answers: Counter[str] = Counter()
            each = CANCELLED_CALLS // MEMBERS
            await asyncio.gather(*(_storm(client, m, each, answers) for m in members))
        notes = f"{answers['cancelled']:,} cancelled, {answers['own']:,} answered"
        name = f"{CANCELLED_CALLS:,} calls cancelled: answers about another caller"
        return [
            at_most(name, answers["other"], 0, "answers", notes),
            at_most(
                "calls between them, shipped policy: failed",
                len(client.failures),
                0,
                "calls",
                client.summary(),
            ),
        ]


async def _storm(
    client: Client, member: Member, count: int, answers: Counter[str]
) -> None:
    """Cancel `count` calls; every tenth is followed by one that must be answered."""
    requests: list[tuple[Any, Any, str]] = [
        (client.users.GetUserSettings, settings_pb2.GetUserSettingsRequest(), ""),
        (client.auth.ListSessions, auth_pb2.ListSessionsRequest(), ""),
        (client.users.GetCurrentUser, user_pb2.GetCurrentUserRequest(), "user"),
        (client.users.GetUser, user_pb2.GetUserRequest(id=member.id), "user"),
    ]
    for number in range(count):
        method, request, field = random.choice(requests)
        call = method(request, metadata=member.metadata)
        await asyncio.sleep(random.uniform(0, 0.02))
        if call.cancel():
            answers["cancelled"] += 1
        elif await call.code() is grpc.StatusCode.OK:
            _count_owner(await call, field, member, answers)
        if number % 10 == 0:
            response = await client.call(
                client.users.GetUser,
                user_pb2.GetUserRequest(id=member.id),
                member.metadata,
            )
            if response is not None:
                _count_owner(response, "user", member, answers)


def _count_owner(
    response: Any, field: str, member: Member, answers: Counter[str]
) -> None:
    if field:
        is_own = getattr(response, field).id == member.id
    else:
        sessions = getattr(response, "sessions", None)
        is_own = sessions is None or any(
            session.id == member.tokens.session_id for session in sessions
        )
    answers["own" if is_own else "other"] += 1


@experiment("L14", max_seconds=120)
async def request_ids_are_repeated() -> list[ResultRow]:
    """Repeat a request id: at once, after a lost response, with another body."""
    async with testbed() as bed:
        url = bed.stores.database_url
        replicas = [await bed.started()]
        async with fault_proxy(to_postgres(url)) as proxy:
            settings = {"DATABASE_URL": proxied_database_url(url, proxy)}
            replicas.append(await bed.started(settings))
            addresses = [replica.grpc for replica in replicas]
            async with open_channel(addresses, SHIPPED) as channel:
                client = Client(channel, timeout=30)
                requests = [_sign_up(f"once{number}") for number in range(KEYS)]
                for request in requests:
                    proxy.reset_on = COMMITTED
                    calls = [
                        asyncio.create_task(
                            client.call(client.users.CreateUser, request)
                        )
                        for _ in range(CALLS_AT_ONCE)
                    ]
                    await asyncio.sleep(0.2)
                    proxy.reset_on = b""
                    responses = await asyncio.gather(*calls)
                    assert len({r.user.id for r in responses if r}) == 1
                other = [_other_body(request) for request in requests]
                for request in other:
                    await client.call(client.users.CreateUser, request)
        refused = client.results[-KEYS:]
        users = await _count(bed, "select count(*) from users")
    failed = Counter(r.details[:50] for r in client.results[:-KEYS] if not r.ok)
    accepted = sum(result.ok for result in refused)
    name = f"request id x{CALLS_AT_ONCE}, some responses lost: accounts per id"
    notes = f"{proxy.resets} responses lost; {sum(failed.values())} calls failed"
    return [
        exactly(name, users / KEYS, 1, "accounts", notes),
        at_most(
            "the same id with another body: accepted",
            accepted,
            0,
            "calls",
            refused[0].details[:60],
        ),
    ]


def _sign_up(name: str) -> user_pb2.CreateUserRequest:
    return user_pb2.CreateUserRequest(
        email=f"{name}@example.com",
        username=name,
        password=PASSWORD,
        request_id=str(uuid.uuid4()),
    )


def _other_body(request: user_pb2.CreateUserRequest) -> user_pb2.CreateUserRequest:
    other = user_pb2.CreateUserRequest(
        email=f"other_{request.email}", username=f"other_{request.username}"
    )
    other.password, other.request_id = request.password, request.request_id
    return other


async def _count(bed: Testbed, query: str) -> int:
    async with bed.database.reading() as connection:
        return int((await connection.execute(sa.text(query))).scalar() or 0)


@experiment("L15", max_seconds=120)
async def writes_conflict() -> list[ResultRow]:
    """Sign up one name, and update one version of an account, many times at once."""
    async with testbed() as bed:
        replicas = [await bed.started() for _ in range(2)]
        addresses = [replica.grpc for replica in replicas]
        async with open_channel(addresses, SHIPPED) as channel:
            client = Client(channel, timeout=30)
            await asyncio.gather(
                *(client.call(client.users.CreateUser, _twin(number))
                  for number in range(CALLS_AT_ONCE))
            )  # fmt: skip
            created = sum(result.ok for result in client.results)
            (member,) = await sign_up_members(client, Ledger(), "m", 1)
            request = user_pb2.GetUserRequest(id=member.id)
            response = await client.users.GetUser(request, metadata=member.metadata)
            etag, calls = response.user.etag, len(client.results)
            await asyncio.gather(
                *(_rename(client, member, number, etag)
                  for number in range(CALLS_AT_ONCE))
            )  # fmt: skip
            updated = sum(result.ok for result in client.results[calls:])
        query = "select count(*) from users where username_folded like 'twin%'"
        rows = await _count(bed, query)
    faults = [r for r in client.results if r.code in SERVER_FAULTS]
    codes = Counter(result.code.name for result in client.results)
    name = f"sign-up of one name x{CALLS_AT_ONCE}: accounts"
    return [
        exactly(name, rows, 1, "accounts", f"{created} answered OK"),
        exactly(f"update of one version x{CALLS_AT_ONCE}: accepted", updated, 1),
        at_most("conflicting writes: 5xx", len(faults), 0, "", str(codes)),
    ]


def _twin(number: int) -> user_pb2.CreateUserRequest:
    request = _sign_up("twin")
    request.email, request.request_id = f"twin{number}@example.com", ""
    return request


async def _rename(client: Client, member: Member, number: int, etag: str) -> None:
    user = user_pb2.User(id=member.id, username=f"name{number}", etag=etag)
    request = user_pb2.UpdateUserRequest(user=user)
    request.update_mask.paths.append("username")
    await client.call(client.users.UpdateUser, request, member.metadata)


@experiment("L16", max_seconds=120)
async def refreshes_race() -> list[ResultRow]:
    """Refresh each of some sessions many times at once, at two replicas."""
    async with testbed() as bed:
        replicas: Sequence[Process] = [await bed.started() for _ in range(2)]
        addresses = [replica.grpc for replica in replicas]
        async with open_channel(addresses, NONE) as channel:
            client = Client(channel, timeout=30)
            members = await sign_up_members(client, Ledger(), "m", KEYS)
            minted, lost = 0, 0
            for member in members:
                responses = await asyncio.gather(
                    *(_refresh(client, member.tokens.refresh_token)
                      for _ in range(CALLS_AT_ONCE))
                )  # fmt: skip
                successors = {r.tokens.refresh_token for r in responses if r}
                minted = max(minted, len(successors))
                usable = [await _refresh(client, token) for token in successors]
                lost += not any(usable)
        failed = sum(not result.ok for result in client.results)
        name = f"refresh x{CALLS_AT_ONCE} at two replicas"
        return [
            at_most(f"{name}: sessions lost", lost, 0, "sessions"),
            exactly(f"{name}: tokens minted", minted, 1, "tokens", f"{failed} failed"),
        ]


async def _refresh(client: Client, token: str) -> Any:
    request = auth_pb2.RefreshTokenRequest(refresh_token=token)
    return await client.call(client.auth.RefreshToken, request)
