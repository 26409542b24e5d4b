"""The main journey, over REST and over gRPC alike."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2
from tests.running import PASSWORD, Running, running


@dataclass(frozen=True, slots=True)
class Answer:
    """What either transport says: OK or a status name, a reason, the JSON body."""

    status: str
    reason: str = ""
    body: Any = None


class Client(Protocol):
    """One caller's view of the service, whatever the transport."""

    async def call(self, name: str, token: str = "", **fields: Any) -> Answer: ...


PATHS: dict[str, tuple[str, str]] = {
    "CreateUser": ("POST", "/api/v1/users"),
    "GetUser": ("GET", "/api/v1/users/{id}"),
    "GetCurrentUser": ("GET", "/api/v1/users/me"),
    "ListUsers": ("GET", "/api/v1/users"),
    "Login": ("POST", "/api/v1/auth/login"),
    "RefreshToken": ("POST", "/api/v1/auth/refresh"),
    "Logout": ("POST", "/api/v1/auth/logout"),
}
UNWRAPPED = {"CreateUser": "user", "GetUser": "user", "GetCurrentUser": "user",
             "Login": "tokens", "RefreshToken": "tokens"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rest:
    """A browser."""

    service: Running

    async def call(self, name: str, token: str = "", **fields: Any) -> Answer:
        method, path = PATHS[name]
        path = path.format(**fields)
        bound = {key: value for key, value in fields.items() if key != "id"}
        response = await self.service.http.request(
            method,
            path,
            headers={"authorization": f"Bearer {token}"} if token else {},
            params=bound if method == "GET" else None,
            json=bound if method != "GET" else None,
        )
        body = response.json() if response.content else {}
        if response.is_success:
            created = 201 if name.startswith("Create") else 200 if body else 204
            assert response.status_code == created
            return Answer("OK", body=body)
        assert response.status_code == HTTP[body["status"]]
        assert body["requestId"] == response.headers["x-request-id"]
        return Answer(body["status"], body["errorCode"], body)


HTTP = {"ALREADY_EXISTS": 409, "NOT_FOUND": 404, "UNAUTHENTICATED": 401,
        "INVALID_ARGUMENT": 400, "RESOURCE_EXHAUSTED": 429}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grpc:
    """An internal service."""

    service: Running

    async def call(self, name: str, token: str = "", **fields: Any) -> Answer:
        module, stub = (
            (user_pb2, self.service.users)
            if hasattr(self.service.users, name)
            else (auth_pb2, self.service.auth)
        )
        request = getattr(module, f"{name}Request")(**fields)
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        try:
            reply = await getattr(stub, name)(request, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            raw = bytes(trailers["grpc-status-details-bin"])
            info = error_details_pb2.ErrorInfo()
            status_pb2.Status.FromString(raw).details[0].Unpack(info)
            return Answer(error.code().name, info.reason)
        if name in UNWRAPPED:
            reply = getattr(reply, UNWRAPPED[name])
        body = MessageToDict(reply, always_print_fields_with_no_presence=True)
        return Answer("OK", body=body)


@pytest_asyncio.fixture
async def service(database_url: str, redis_url: str) -> AsyncIterator[Running]:
    async with running(database_url, redis_url) as started:
        yield started


@pytest.fixture(params=[Rest, Grpc])
def client(request: pytest.FixtureRequest, service: Running) -> Client:
    make: Callable[[Running], Client] = request.param
    return make(service)


async def test_the_journey(client: Client) -> None:
    """Sign up, log in, read, list, refresh, log out: the same on both transports."""
    signup = {"email": "Ana@Example.com", "username": "Ana", "password": PASSWORD}
    made = await client.call("CreateUser", **signup)
    assert (made.status, made.body["email"]) == ("OK", "ana@example.com")
    for taken, reason in (
        ({"username": "bea", "email": "ANA@example.COM"}, "EMAIL_TAKEN"),
        ({"username": "aNA", "email": "bea@example.com"}, "USERNAME_TAKEN"),
    ):
        answer = await client.call("CreateUser", **signup | taken)
        assert (answer.status, answer.reason) == ("ALREADY_EXISTS", reason)
    first = (await client.call("Login", identifier="ana", password=PASSWORD)).body
    token = first["accessToken"]
    me = await client.call("GetCurrentUser", token)
    assert me.body == made.body
    assert me.body["role"] == "ROLE_STUDENT"
    answer = await client.call("GetUser", token, id=999_999)
    assert (answer.status, answer.reason) == ("NOT_FOUND", "USER_NOT_FOUND")
    answer = await client.call("GetUser", id=999_999)
    assert (answer.status, answer.reason) == ("UNAUTHENTICATED", "TOKEN_MISSING")
    await client.call("CreateUser", **signup | {"username": "bea", "email": "b@x.co"})
    listed = (
        await client.call("ListUsers", token, page_size=1, sort_by="username")
    ).body
    assert (listed["total"], listed["pages"], listed["hasNext"]) == (2, 2, True)
    assert [user["username"] for user in listed["items"]] == ["Ana"]
    second = (
        await client.call(
            "ListUsers", token, page_size=1, sort_by="username",
            page_token=listed["nextPageToken"],
        )
    ).body  # fmt: skip
    assert [user["username"] for user in second["items"]] == ["bea"]
    assert second["hasNext"] is False
    assert not second["items"][0]["email"]


async def test_sessions_end(client: Client) -> None:
    """A used refresh token ends its session; logging out ends the access token."""
    await client.call("CreateUser", email="a@x.co", username="ana", password=PASSWORD)
    first = (await client.call("Login", identifier="A@X.CO", password=PASSWORD)).body
    second = await client.call("RefreshToken", refresh_token=first["refreshToken"])
    third = await client.call("RefreshToken", refresh_token=second.body["refreshToken"])
    assert third.status == "OK"
    for token in (first["refreshToken"], third.body["refreshToken"]):
        answer = await client.call("RefreshToken", refresh_token=token)
        assert answer.reason == "REFRESH_TOKEN_INVALID"
    again = (await client.call("Login", identifier="ana", password=PASSWORD)).body
    token = again["accessToken"]
    assert (await client.call("Logout", token)).status == "OK"
    answer = await client.call("GetCurrentUser", token)
    assert (answer.status, answer.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")
