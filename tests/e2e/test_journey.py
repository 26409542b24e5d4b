"""The main journey, over REST and over gRPC."""

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.clients import Client, Grpc, Rest
from tests.running import PASSWORD, RunningService, running


@pytest_asyncio.fixture
async def service(database_url: str, redis_url: str) -> AsyncIterator[RunningService]:
    async with running(database_url, redis_url) as started:
        yield started


@pytest.fixture(params=[Rest, Grpc])
def client(request: pytest.FixtureRequest, service: RunningService) -> Client:
    make: Callable[[RunningService], Client] = request.param
    return make(service)


async def test_user_journey(client: Client) -> None:
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


async def test_session_ends_by_reuse_and_log_out(client: Client) -> None:
    """A reused refresh token ends its session; log-out ends the access token."""
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
