"""Concurrent conflicting requests: one succeeds, the others get a clear error."""

import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

from tests.clients import Answer, Client, Grpc, Rest
from tests.running import PASSWORD, RunningService

CALLERS = 50
UPDATES = 20
TIMEOUT_SECONDS = 30
POST = {"title": "On numbers", "body": "There are many."}


async def sign_up_concurrently(
    service: RunningService, *calls: dict[str, Any]
) -> list[Answer]:
    """Sign up concurrently, alternating between both transports.

    Fifty calls share ten connections to Postgres and a few hashing threads. On a slow
    machine some wait too long and get an error that asks the client to retry.
    """
    clients: list[Client] = [Rest(service), Grpc(service)]

    async def sign_up(number: int, fields: dict[str, Any]) -> Answer:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                answer = await clients[number % 2].call("CreateUser", **fields)
                if answer.reason not in ("STORE_UNAVAILABLE", "OVERLOADED"):
                    return answer
                await asyncio.sleep(0.1)

    return await asyncio.gather(*(sign_up(n, call) for n, call in enumerate(calls)))


async def test_concurrent_sign_ups_create_one_account(shared: RunningService) -> None:
    """L15, R30, R31: the other 49 get USERNAME_TAKEN, in upper case too."""
    name = f"race_{uuid4().hex[:8]}"
    spellings = [name, name.upper(), name.title()]
    answers = await sign_up_concurrently(
        shared,
        *(
            {
                "email": f"{name}{number}@example.com",
                "username": spellings[number % 3],
                "password": PASSWORD,
                "request_id": str(uuid4()),  # a retry gets the first response
            }
            for number in range(CALLERS)
        ),
    )
    assert Counter((a.status, a.reason) for a in answers) == {
        ("OK", ""): 1,
        ("ALREADY_EXISTS", "USERNAME_TAKEN"): CALLERS - 1,
    }
    ana = await shared.signed_in()
    users = await Rest(shared).call(
        "ListUsers", ana.tokens.access_token, username_prefix=name
    )
    assert users.body["total"] == 1


async def test_concurrent_updates_of_one_version_apply_one(
    shared: RunningService,
) -> None:
    """L15: over both transports; the others are told to read it again."""
    ana = await shared.signed_in()
    response = await Rest(shared).call("CreatePost", ana.tokens.access_token, **POST)
    post = response.body
    clients: list[Client] = [Rest(shared), Grpc(shared)]
    answers = await asyncio.gather(
        *(
            clients[number % 2].call(
                "UpdatePost",
                ana.tokens.access_token,
                id=post["id"],
                title=f"Version {number}",
                etag=post["etag"],
            )
            for number in range(UPDATES)
        )
    )
    assert Counter((a.status, a.reason) for a in answers) == {
        ("OK", ""): 1,
        ("ABORTED", "ETAG_MISMATCH"): UPDATES - 1,
    }


async def test_concurrent_repeats_of_a_request_id_create_one_account(
    shared: RunningService,
) -> None:
    """L14: fifty equal responses over both transports."""
    name = f"again_{uuid4().hex[:8]}"
    fields = {
        "email": f"{name}@example.com",
        "username": name,
        "password": PASSWORD,
        "request_id": str(uuid4()),
    }
    answers = await sign_up_concurrently(shared, *([fields] * CALLERS))
    assert {answer.status for answer in answers} == {"OK"}
    assert all(answer.body == answers[0].body for answer in answers)
