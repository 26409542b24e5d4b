"""Every RPC's access, from the contract alone: a new RPC is covered unasked.

R27, R41: deny by default. Each RPC is called over both transports as nobody, as a
student, as the student that it is about, as a service and as an admin.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.api import annotations_pb2
from google.protobuf.message import Message

from blatam.auth.v1 import auth_pb2
from blatam.policy.v1.policy_pb2 import Access
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from server.rpc import contract
from server.rpc.call import Method
from tests.running import Running, SignedIn

METHODS = {method.name: method for method in contract.methods()}
HTTP: Any = annotations_pb2.http
REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
SECONDS_OF_A_STREAM = 0.3  # some have no end of their own


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and whether the request is about them."""

    who: SignedIn | None
    own: bool = False
    admin: bool = False
    service: bool = False


def expected(method: Method, caller: Caller) -> str:
    """Give what the policy says: a refusal's code, or "" for let through."""
    access = method.policy.access
    if access == Access.ACCESS_PUBLIC:
        return ""
    if caller.who is None:
        return "UNAUTHENTICATED"
    if caller.service and method.policy.user_required:
        return "PERMISSION_DENIED"
    if access == Access.ACCESS_SIGNED_IN or caller.admin:
        return ""
    if caller.service:
        return "" if access == Access.ACCESS_SERVICE else "PERMISSION_DENIED"
    return "" if access == Access.ACCESS_SELF and caller.own else "PERMISSION_DENIED"


def request_about(method: Method, user_id: int) -> Message:
    """Give an otherwise empty request; it reaches the rules, and no further."""
    request: Message = method.request_type()
    *outer, last = (method.policy.self or "").split(".")
    where: Message = request
    for name in outer:
        where = getattr(where, name)
    if last:
        setattr(where, last, user_id)
    return request


async def by_grpc(service: Running, method: Method, body: Message, who: Caller) -> str:
    message = body.SerializeToString()
    metadata = who.who.metadata if who.who else ()
    try:
        if method.streams:
            stream: Any = service.channel.unary_stream(method.path)
            await stream(message, metadata=metadata, timeout=SECONDS_OF_A_STREAM).read()
        else:
            unary: Any = service.channel.unary_unary(method.path)
            await unary(message, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return ""


async def by_rest(service: Running, method: Method, body: Message, who: Caller) -> str:
    path_of, verb = rest(method)
    nobody = str(2**62)  # what others may have made is not for this test to end
    user_id = str(_at(body, method.policy.self)) if method.policy.self else nobody
    path = re.sub(r"\{[a-z_.]+\}", user_id, path_of)
    headers = who.who.headers if who.who else {}
    if method.streams:
        headers = headers | {"grpc-timeout": f"{SECONDS_OF_A_STREAM * 1000:.0f}m"}
    content = None if verb in {"GET", "DELETE"} else b"{}"
    if content:
        headers = headers | {"content-type": "application/json"}
    response = await service.http.request(verb, path, headers=headers, content=content)
    return "" if response.is_success else str(response.json()["status"])


def rest(method: Method) -> tuple[str, str]:
    service, _, name = method.name.partition("/")
    found = next(s for s in contract.SERVICES if s.full_name == service)
    rule: Any = found.methods_by_name[name].GetOptions().Extensions[HTTP]
    verb = rule.WhichOneof("pattern")
    return getattr(rule, verb), verb.upper()


def _at(message: Message, path: str) -> object:
    value: object = message
    for name in path.split("."):
        value = getattr(value, name)
    return value


async def service_key(shared: Running, admin: SignedIn) -> SignedIn:
    """Give a service with a new key."""
    request = auth_pb2.CreateServiceKeyRequest(name="test")
    made = await shared.auth.CreateServiceKey(request, metadata=admin.metadata)
    tokens = auth_pb2.TokenPair(access_token=made.secret)
    return SignedIn(user_pb2.User(), tokens)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("transport", [by_grpc, by_rest])
async def test_access_is_what_the_contract_says(
    shared: Running,
    name: str,
    transport: Callable[[Running, Method, Message, Caller], Awaitable[str]],
) -> None:
    method = METHODS[name]
    admin = await shared.signed_in(Role.ADMIN)
    other = await shared.signed_in()
    key = await service_key(shared, admin)
    student = await shared.signed_in()
    for caller in (
        Caller(None),
        Caller(other),
        Caller(key, service=True),
        Caller(student, own=True),  # may end the session, even the account
        Caller(admin, admin=True),
    ):
        body = request_about(method, student.user.id)
        outcome = await transport(shared, method, body, caller)
        wanted = expected(method, caller)
        # what is let through meets the field rules next, and may fail there
        seen = outcome if outcome in REFUSED else ""
        if method.path.endswith(("Login", "RefreshToken")):
            assert seen in ("", "UNAUTHENTICATED")
        else:
            assert seen == wanted, (name, caller)
        assert outcome not in ("INTERNAL", "UNKNOWN", "UNIMPLEMENTED")
