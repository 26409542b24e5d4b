"""All transports share one chain: responses, errors and metadata are equal."""

from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
import pytest_asyncio
import structlog
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy.ext.asyncio import AsyncEngine

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2
from edge.port import CallError, Metadata, RemotePort, Reply
from edge.remote.batching import BatchingPort
from server.composition.edge.app import edge_app, edge_settings
from server.config import load
from tests.conftest import Servers, fresh_database, key_space
from tests.running import PASSWORD, RunningService, SignedInUser, running

USERS, AUTH = "/blatam.user.v1.UserService", "/blatam.auth.v1.AuthService"
REQUEST_ID = "00112233445566778899aabbccddeeff"


@dataclass(frozen=True, slots=True)
class Scene:
    """A service, and the user ana with a session."""

    service: RunningService
    ana: SignedInUser


@pytest_asyncio.fixture(scope="module")
async def scene(
    servers: Servers, admin: AsyncEngine, template: str
) -> AsyncIterator[Scene]:
    """Return a service that trusts this host as a proxy, as behind `academy edge`."""
    local_host = (ip_network("127.0.0.0/8"),)
    async with (
        fresh_database(servers, admin, template) as url,
        running(url, key_space(servers, 3), trusted_proxies=local_host) as started,
    ):
        user = await started.sign_up("ana")
        yield Scene(started, SignedInUser(user, await started.log_in("ana")))


@dataclass(frozen=True, slots=True)
class Case:
    method: str
    request: Message | bytes
    signed_in: bool = False
    extra: Metadata = ()

    @property
    def body(self) -> bytes:
        request = self.request
        return request if isinstance(request, bytes) else request.SerializeToString()


CASES = {
    "get": Case(f"{USERS}/GetUser", user_pb2.GetUserRequest(id=1), True),
    "get unknown": Case(f"{USERS}/GetUser", user_pb2.GetUserRequest(id=99), True),
    "get zero": Case(f"{USERS}/GetUser", user_pb2.GetUserRequest(), True),
    "no token": Case(f"{USERS}/GetUser", user_pb2.GetUserRequest(id=1)),
    "bad token": Case(
        f"{USERS}/GetUser",
        user_pb2.GetUserRequest(id=1),
        extra=(("authorization", "Bearer x"),),
    ),
    "me": Case(f"{USERS}/GetCurrentUser", b"", True),
    "list": Case(f"{USERS}/ListUsers", user_pb2.ListUsersRequest(page_size=1), True),
    "keys": Case(f"{AUTH}/GetJsonWebKeySet", b""),
    "wrong password": Case(
        f"{AUTH}/Login", auth_pb2.LoginRequest(identifier="x", password="y")
    ),
    "weak password": Case(
        f"{USERS}/CreateUser",
        user_pb2.CreateUserRequest(email="a", username="-", password="x"),
    ),
    "taken": Case(
        f"{USERS}/CreateUser",
        user_pb2.CreateUserRequest(email="new@x.co", username="ana", password=PASSWORD),
    ),
    "undecodable": Case(f"{USERS}/CreateUser", b"\xff\xff"),
    "no such method": Case(f"{USERS}/Nothing", b""),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the caller gets, and the call's log line."""

    message: bytes
    code: int
    text: str
    details: tuple[tuple[str, bytes], ...]
    headers: tuple[tuple[str, str | bytes], ...]
    trailers: tuple[tuple[str, str | bytes], ...]
    log: tuple[tuple[str, object], ...]


async def outcome(call: Awaitable[Reply]) -> Outcome:
    with structlog.testing.capture_logs() as lines:
        try:
            reply = await call
            fields = (reply.message, 0, "", (), reply.headers, reply.trailers)
        except CallError as error:
            status = status_pb2.Status.FromString(error.status)
            fields = (  # type: ignore[assignment]  # the same fields, other types
                b"",
                error.code,
                "" if error.code == 12 else error.message,
                tuple((each.type_url, each.value) for each in status.details),
                error.headers,
                error.trailers,
            )
    message, code, text, details, headers, trailers = fields
    # background tasks may log in between
    calls: list[Any] = [line for line in lines if line["event"] == "call"] or [{}]
    line = {k: v for k, v in calls[-1].items() if k not in {"ms", "id"}}
    return Outcome(
        message, code, text, details, _sorted(headers), _sorted(trailers),
        tuple(sorted(line.items())),
    )  # fmt: skip


def _sorted(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(sorted((key, value) for key, value in metadata))


@pytest.mark.parametrize("name", CASES)
async def test_transports_give_the_same_outcome(scene: Scene, name: str) -> None:
    """In process, by unary calls and batched: bytes, statuses, metadata and log."""
    service, ana, case = scene.service, scene.ana, CASES[name]
    metadata = (
        ("x-forwarded-for", "203.0.113.9"),
        ("x-request-id", REQUEST_ID),
        *(ana.metadata if case.signed_in else ()),
        *case.extra,
    )
    remote, batching = RemotePort(service.channel), BatchingPort(service.channel)
    local, plain, batched = [
        await outcome(port.unary(case.method, case.body, metadata=metadata, timeout=20))
        for port in (service.port, remote, batching)
    ]
    assert local == plain
    assert local == batched
    assert local.message or local.code or case.method.endswith("Nothing")


REQUESTS: Sequence[tuple[str, str, object]] = (
    ("GET", "/api/v1/users/1", None),
    ("GET", "/api/v1/users/99", None),
    ("GET", "/api/v1/users/0", None),
    ("GET", "/api/v1/users?page_size=1", None),
    ("GET", "/.well-known/jwks.json", None),
    ("POST", "/api/v1/users", {"email": "a"}),
    ("POST", "/api/v1/users", {"nothing": 1}),
    ("GET", "/api/v1/nothing", None),
    ("POST", "/api/v1/auth/logout", {}),
)


async def test_edge_in_process_and_edge_process_respond_alike(scene: Scene) -> None:
    """REST in process and `academy edge` in front of a remote server."""
    service = scene.service
    settings = edge_settings(load(), {})
    app = edge_app(BatchingPort(service.channel), settings)
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as remote:
        callers = [
            (http, SignedInUser(user_pb2.User(), await service.log_in("ana")).headers)
            for http in (service.http, remote)
        ]
        for method, path, body in REQUESTS:
            responses = []
            for http, headers in callers:
                response = await http.request(method, path, json=body, headers=headers)
                responses.append((response.status_code, _stable(response)))
            assert responses[0] == responses[1], path


def _stable(response: httpx.Response) -> tuple[object, object]:
    """Return headers and body without request ids and times."""
    headers = {k: v for k, v in response.headers.items() if k != "x-request-id"}
    body = response.json() if response.content else None
    if isinstance(body, dict) and "requestId" in body:
        body.pop("requestId")
        body.pop("timestamp")
        kind = error_details_pb2.RequestInfo.DESCRIPTOR.full_name
        body["details"] = [
            detail for detail in body["details"] if not detail["@type"].endswith(kind)
        ]
    return headers, body
