"""A browser that requests it keeps its refresh token where no script can read it."""

import re

import grpc
import httpx
import pytest

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2
from tests.running import PASSWORD, RunningService, SignedInUser
from tests.status import expect_rpc_error

COOKIE = "__Host-refresh_token"
BROWSER = {"x-token-mode": "cookie", "sec-fetch-site": "same-origin"}
LOGOUT = "/api/v1/auth/logout"


async def log_in(
    service: RunningService,
    username: str = "",
    password: str = PASSWORD,
    **headers: str,
) -> httpx.Response:
    username = username or (await service.sign_up()).username
    body = {"identifier": username, "password": password}
    return await service.http.post(
        "/api/v1/auth/login", json=body, headers=BROWSER | headers
    )


def cookie(response: httpx.Response) -> str:
    match = re.match(rf"{COOKIE}=([^;]+);", response.headers["set-cookie"])
    assert match
    return f"{COOKIE}={match[1]}"


async def refresh(
    service: RunningService, token_cookie: str, headers: dict[str, str], **body: str
) -> httpx.Response:
    return await service.http.post(
        "/api/v1/auth/refresh", json=body, headers=headers | {"cookie": token_cookie}
    )


async def is_valid(service: RunningService, access_token: str) -> bool:
    """Return whether a service accepts an access token."""
    headers = {"authorization": f"Bearer {access_token}"}
    response = await service.http.get("/api/v1/users/me", headers=headers)
    assert response.status_code in (200, 401)
    return response.status_code == 200


async def test_token_is_in_the_cookie_only(shared: RunningService) -> None:
    """R23: HttpOnly, Secure, SameSite=Strict, of this host; not in the body."""
    response = await log_in(shared)
    assert response.status_code == 200
    assert "refreshToken" not in response.json()
    assert response.json()["accessToken"]
    attributes = {part.strip() for part in response.headers["set-cookie"].split(";")}
    assert {"HttpOnly", "Secure", "SameSite=Strict", "Path=/"} <= attributes
    assert f"Max-Age={30 * 86400}" in attributes
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("mode", ["cookie, cookie", "header"])
async def test_unknown_token_mode_is_refused(shared: RunningService, mode: str) -> None:
    """R23: a typing error must not put a token into a body."""
    ana = await shared.signed_in()
    body = {"identifier": ana.user.username, "password": PASSWORD}
    headers = {**BROWSER, "x-token-mode": mode}
    answer = await shared.http.post("/api/v1/auth/login", json=body, headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (400, "INVALID_ARGUMENT")


async def test_cookie_is_replaced_by_refresh_and_cleared_by_logout(
    shared: RunningService,
) -> None:
    """ASVS 14.3.1: a log-out clears the data that the browser stored, too."""
    first = await log_in(shared)
    second = await refresh(shared, cookie(first), BROWSER)
    assert second.status_code == 200, second.text
    assert cookie(second) != cookie(first)
    access = second.json()["accessToken"]
    out = await shared.http.post(
        LOGOUT, headers=BROWSER | {"authorization": f"Bearer {access}"}, json={}
    )
    assert out.status_code == 204
    assert "Max-Age=0" in out.headers["set-cookie"]
    assert out.headers["clear-site-data"] == '"cache", "storage"'
    ended = await refresh(shared, cookie(second), BROWSER)
    assert ended.status_code == 401
    assert ended.headers["set-cookie"].startswith(f"{COOKIE}=; ")
    assert "Max-Age=0" in ended.headers["set-cookie"]
    assert not await is_valid(shared, access)


@pytest.mark.parametrize("access", ["", "Bearer expired"])
async def test_logout_needs_the_cookie_only(
    shared: RunningService, access: str
) -> None:
    """The access token of an idle page has expired; the refresh token suffices."""
    response = await log_in(shared)
    headers = BROWSER | {"cookie": cookie(response)}
    if access:
        headers["authorization"] = access
    for _ in range(2):  # once more is no error
        out = await shared.http.post(LOGOUT, headers=headers)
        assert out.status_code == 204, out.text
        assert "Max-Age=0" in out.headers["set-cookie"]
    assert (await refresh(shared, cookie(response), BROWSER)).status_code == 401
    assert not await is_valid(shared, response.json()["accessToken"])


@pytest.mark.parametrize("token_cookie", ["", f"{COOKIE}=x", "other=1"])
async def test_logout_without_a_valid_token_is_401(
    shared: RunningService, token_cookie: str
) -> None:
    """R27: a made-up refresh token ends nothing; its cookie is cleared."""
    headers = BROWSER | ({"cookie": token_cookie} if token_cookie else {})
    out = await shared.http.post(LOGOUT, headers=headers)
    assert (out.status_code, out.json()["status"]) == (401, "UNAUTHENTICATED")
    assert ("set-cookie" in out.headers) is token_cookie.startswith(COOKIE)


async def test_logout_over_grpc_needs_the_refresh_token_only(
    shared: RunningService,
) -> None:
    """The same over gRPC, where the token is a field of the request."""
    ana = await shared.signed_in()
    request = auth_pb2.LogoutRequest(refresh_token=ana.tokens.refresh_token)
    await shared.auth.Logout(request)
    me = shared.users.GetCurrentUser(
        user_pb2.GetCurrentUserRequest(), metadata=ana.metadata
    )
    assert (await expect_rpc_error(me)).code is grpc.StatusCode.UNAUTHENTICATED
    made_up = auth_pb2.LogoutRequest(refresh_token="x")
    assert (
        await expect_rpc_error(shared.auth.Logout(made_up))
    ).reason == "REFRESH_TOKEN_INVALID"
    empty = shared.auth.Logout(auth_pb2.LogoutRequest())
    assert (await expect_rpc_error(empty)).reason == "TOKEN_MISSING"


async def test_logout_ends_the_sessions_of_both_tokens(shared: RunningService) -> None:
    """An access token of one session and a refresh token of another, or of none."""
    user = await shared.sign_up()
    tokens = []
    for _ in range(3):
        login = auth_pb2.LoginRequest(identifier=user.username, password=PASSWORD)
        tokens.append((await shared.auth.Login(login)).tokens)
    first, second, third = (SignedInUser(user, pair) for pair in tokens)
    request = auth_pb2.LogoutRequest(refresh_token=second.tokens.refresh_token)
    await shared.auth.Logout(request, metadata=first.metadata)
    made_up = auth_pb2.LogoutRequest(refresh_token="x")
    await shared.auth.Logout(made_up, metadata=third.metadata)
    for session in (first, second, third):
        assert not await is_valid(shared, session.tokens.access_token)


async def test_login_ends_the_session_of_the_cookie(shared: RunningService) -> None:
    """ASVS 7.2.4: an older session of the browser ends, also one of another user."""
    first = await log_in(shared)
    failed = await log_in(shared, password="Wrong-1234", cookie=cookie(first))
    assert failed.status_code == 401
    assert "set-cookie" not in failed.headers
    assert await is_valid(shared, first.json()["accessToken"])
    second = await log_in(shared, cookie=cookie(first))
    assert second.status_code == 200
    assert not await is_valid(shared, first.json()["accessToken"])
    assert (await refresh(shared, cookie(first), BROWSER)).status_code == 401
    assert await is_valid(shared, second.json()["accessToken"])
    assert (await refresh(shared, cookie(second), BROWSER)).status_code == 200
    unknown = await log_in(shared, cookie=f"{COOKIE}=x")
    assert unknown.status_code == 200


async def test_login_over_grpc_ends_the_session_that_it_replaces(
    shared: RunningService,
) -> None:
    """The same over gRPC, where the older token is a field of the request."""
    ana = await shared.signed_in()
    request = auth_pb2.LoginRequest(
        identifier=ana.user.username,
        password=PASSWORD,
        refresh_token=ana.tokens.refresh_token,
    )
    tokens = (await shared.auth.Login(request)).tokens
    assert not await is_valid(shared, ana.tokens.access_token)
    assert await is_valid(shared, tokens.access_token)


async def test_other_sites_cannot_use_the_cookie(shared: RunningService) -> None:
    """R24: a cross-site request, a foreign origin and a form are refused."""
    token_cookie = cookie(await log_in(shared))
    for wrong in (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "", "origin": "https://evil.example"},
    ):
        headers = {k: v for k, v in (BROWSER | wrong).items() if v}
        assert (await refresh(shared, token_cookie, headers)).status_code == 403
        out = await shared.http.post(LOGOUT, headers=headers | {"cookie": token_cookie})
        assert out.status_code == 403
    form = BROWSER | {"content-type": "text/plain", "cookie": token_cookie}
    response = await shared.http.post(
        "/api/v1/auth/refresh", content=b"{}", headers=form
    )
    assert response.status_code == 415
    assert (await refresh(shared, token_cookie, BROWSER)).status_code == 200


async def test_cookie_beside_a_value_is_400(shared: RunningService) -> None:
    """Which of them is meant is unknown."""
    token_cookie = cookie(await log_in(shared))
    response = await refresh(shared, token_cookie, BROWSER, refreshToken="x")
    assert response.status_code == 400


async def test_without_token_mode_the_token_is_in_the_body(
    shared: RunningService,
) -> None:
    """Not stored by any cache either (RFC 6749 5.1)."""
    user = await shared.sign_up()
    body = {"identifier": user.username, "password": PASSWORD}
    response = await shared.http.post("/api/v1/auth/login", json=body)
    assert response.json()["refreshToken"]
    assert "set-cookie" not in response.headers
    assert response.headers["cache-control"] == "no-store"
