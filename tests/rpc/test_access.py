"""The access rule of every RPC, read from the contract; new RPCs are included.

R27, R41: deny by default. Each RPC is called over both transports without a token, by
a student, by the student whom the request concerns, by a service and by an admin.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.api import annotations_pb2
from google.protobuf.message import Message

from blatam.auth.v1 import auth_pb2
from blatam.policy.v1.policy_pb2 import Access, FactorLevel
from blatam.user.v1 import user_pb2
from edge.port import CallError
from server.domain.accounts.users import Role
from server.rpc import contract
from server.rpc.call import Method
from tests.running import RunningService, SignedInUser

METHODS = {method.name: method for method in contract.methods()}
HTTP: Any = annotations_pb2.http
READS = ("Get", "BatchGet", "List", "Export", "Watch")
REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
STREAM_TIMEOUT_SECONDS = 1.0  # some streams never end by themselves


@dataclass(frozen=True, slots=True)
class AccessCase:
    """A caller, and whether the request concerns their own account."""

    user: SignedInUser | None
    own: bool = False
    admin: bool = False
    service: bool = False


def expected(method: Method, caller: AccessCase) -> str:
    """Return the refusal's code that the policy demands, or "" if it permits."""
    access = method.policy.access
    if access == Access.ACCESS_PUBLIC:
        return ""
    if caller.user is None:
        return "UNAUTHENTICATED"
    if caller.service and method.policy.user_required:
        return "PERMISSION_DENIED"
    if access == Access.ACCESS_SIGNED_IN or caller.admin:
        needs_two = method.policy.min_factor == FactorLevel.FACTOR_LEVEL_TWO
        return "UNAUTHENTICATED" if needs_two else ""  # the log-in had one factor
    if caller.service:
        return "" if access == Access.ACCESS_SERVICE else "PERMISSION_DENIED"
    return "" if access == Access.ACCESS_SELF and caller.own else "PERMISSION_DENIED"


def request_about(method: Method, user_id: int) -> Message:
    """Return a request that is empty but for the user id; field rules refuse it."""
    request: Message = method.request_type()
    *outer, last = (method.policy.self or "").split(".")
    parent: Message = request
    for name in outer:
        parent = getattr(parent, name)
    if last:
        setattr(parent, last, user_id)
    return request


async def by_grpc(
    service: RunningService, method: Method, body: Message, caller: AccessCase
) -> str:
    message = body.SerializeToString()
    metadata = caller.user.metadata if caller.user else ()
    try:
        if method.streams:
            stream: Any = service.channel.unary_stream(method.path)
            await stream(
                message, metadata=metadata, timeout=STREAM_TIMEOUT_SECONDS
            ).read()
        else:
            unary: Any = service.channel.unary_unary(method.path)
            await unary(message, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return ""


async def by_rest(
    service: RunningService, method: Method, body: Message, caller: AccessCase
) -> str:
    template, verb = rest(method)
    unknown_id = str(2**62)  # rows of other tests must not be deleted
    user_id = str(_at(body, method.policy.self)) if method.policy.self else unknown_id
    path = re.sub(r"\{[a-z_.]+\}", user_id, template)
    headers = caller.user.headers if caller.user else {}
    if method.streams:
        headers = headers | {"grpc-timeout": f"{STREAM_TIMEOUT_SECONDS * 1000:.0f}m"}
    content = None if verb in {"GET", "DELETE"} else b"{}"
    if content:
        headers = headers | {"content-type": "application/json"}
    response = await service.http.request(verb, path, headers=headers, content=content)
    return "" if response.is_success else str(response.json()["status"])


def rest(method: Method) -> tuple[str, str]:
    service, _, name = method.name.partition("/")
    descriptor = next(s for s in contract.SERVICES if s.full_name == service)
    rule: Any = descriptor.methods_by_name[name].GetOptions().Extensions[HTTP]
    verb = rule.WhichOneof("pattern")
    return getattr(rule, verb), verb.upper()


def _at(message: Message, path: str) -> object:
    value: object = message
    for name in path.split("."):
        value = getattr(value, name)
    return value


async def service_key(shared: RunningService, admin: SignedInUser) -> SignedInUser:
    """Return a service with a new service key."""
    request = auth_pb2.CreateServiceKeyRequest(name="test")
    key = await shared.auth.CreateServiceKey(request, metadata=admin.metadata)
    tokens = auth_pb2.TokenPair(access_token=key.secret)
    return SignedInUser(user_pb2.User(), tokens)


@dataclass(frozen=True, slots=True)
class Callers:
    """A caller of every kind."""

    admin: SignedInUser
    student: SignedInUser
    other: SignedInUser
    service: SignedInUser


async def new_callers(shared: RunningService) -> Callers:
    admin = await shared.signed_in(Role.ADMIN)
    student, other = await shared.signed_in(), await shared.signed_in()
    return Callers(admin, student, other, await service_key(shared, admin))


@pytest_asyncio.fixture(scope="module")
async def callers(shared: RunningService) -> Callers:
    """Return the callers of RPCs that only read; others may end their sessions."""
    return await new_callers(shared)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("transport", [by_grpc, by_rest])
async def test_access_follows_the_contract(
    shared: RunningService,
    callers: Callers,
    name: str,
    transport: Callable[[RunningService, Method, Message, AccessCase], Awaitable[str]],
) -> None:
    method = METHODS[name]
    if not name.partition("/")[2].startswith(READS):
        callers = await new_callers(shared)
    for caller in (
        AccessCase(None),
        AccessCase(callers.other),
        AccessCase(callers.service, service=True),
        # may log out or delete the account: comes late
        AccessCase(callers.student, own=True),
        AccessCase(callers.admin, admin=True),
    ):
        body = request_about(method, callers.student.user.id)
        outcome = await transport(shared, method, body, caller)
        # A permitted call may still fail at the field rules.
        refusal = outcome if outcome in REFUSED else ""
        if method.path.endswith(("Login", "RefreshToken")):
            assert refusal in ("", "UNAUTHENTICATED")
        else:
            assert refusal == expected(method, caller), (name, caller)
        assert outcome not in ("INTERNAL", "UNKNOWN", "UNIMPLEMENTED")


@pytest.mark.parametrize(
    ("pattern", "accepted"),
    [
        ("Bearer {}", True),
        ("bearer {}", True),
        ("Bearer   {}", True),
        (" \t Bearer {} \t", True),
        ("Bearer{}", False),
        ("Bearer\t{}", False),
        ("Basic {}", False),
        ("Bearer {} x", False),
        ("{}", False),
        ("Bearer", False),
    ],
)
async def test_white_space_in_the_authorization_header(
    shared: RunningService, pattern: str, accepted: bool
) -> None:
    """RFC 9110: optional around the value (5.5); one or more SP in it (11.6.2)."""
    user = await shared.signed_in()
    value = pattern.format(user.tokens.access_token)
    get_user = shared.port.unary(
        "/blatam.user.v1.UserService/GetCurrentUser",
        b"",
        metadata=(("authorization", value),),
        timeout=5,
    )
    if accepted:
        assert (await get_user).message
    else:
        with pytest.raises(CallError) as caught:
            await get_user
        assert caught.value.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
