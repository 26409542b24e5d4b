"""Concurrent conflicting requests: one succeeds, the others get a clear error."""

import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

from tests.clients import Answer, Client, Grpc, Rest
from tests.running import PASSWORD, Running

CALLERS = 50


async def sign_up_concurrently(
    service: Running, *calls: dict[str, Any]
) -> list[Answer]:
    """Sign up concurrently, alternating between both transports."""
    clients: list[Client] = [Rest(service), Grpc(service)]
    return await asyncio.gather(
        *(
            clients[number % 2].call("CreateUser", **fields)
            for number, fields in enumerate(calls)
        )
    )


async def test_concurrent_sign_ups_create_one_account(shared: Running) -> None:
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


async def test_concurrent_repeats_of_a_request_id_create_one_account(
    shared: Running,
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
