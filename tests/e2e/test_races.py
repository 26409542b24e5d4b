"""Many at once want the same: one gets it, and each of the others a clear answer."""

import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

from tests.clients import Answer, Client, Grpc, Rest
from tests.running import PASSWORD, Running

CALLERS = 50


async def at_once(service: Running, *calls: dict[str, Any]) -> list[Answer]:
    """Sign up with each of these at once, over both transports in turn."""
    clients: list[Client] = [Rest(service), Grpc(service)]
    return await asyncio.gather(
        *(
            clients[number % 2].call("CreateUser", **fields)
            for number, fields in enumerate(calls)
        )
    )


async def test_fifty_sign_ups_of_one_name(shared: Running) -> None:
    """L15, R30, R31: one account, and 49 refusals that say why; none is a fault."""
    name = f"race_{uuid4().hex[:8]}"
    spelt = [name, name.upper(), name.title()]
    answers = await at_once(
        shared,
        *(
            {
                "email": f"{name}{number}@example.com",
                "username": spelt[number % 3],
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
    found = await Rest(shared).call(
        "ListUsers", ana.tokens.access_token, username_prefix=name
    )
    assert found.body["total"] == 1


async def test_fifty_repeats_of_one_request(shared: Running) -> None:
    """L14: one account, fifty equal answers, whatever the transport."""
    name = f"again_{uuid4().hex[:8]}"
    fields = {
        "email": f"{name}@example.com",
        "username": name,
        "password": PASSWORD,
        "request_id": str(uuid4()),
    }
    answers = await at_once(shared, *([fields] * CALLERS))
    assert {answer.status for answer in answers} == {"OK"}
    assert all(answer.body == answers[0].body for answer in answers)
