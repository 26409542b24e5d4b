"""A browser that asks for it keeps its refresh token where no script reads it."""

import re

import httpx
import pytest

from tests.running import PASSWORD, Running

COOKIE = "__Host-refresh_token"
BROWSER = {"x-token-mode": "cookie", "sec-fetch-site": "same-origin"}


async def log_in(service: Running, **headers: str) -> httpx.Response:
    user = await service.sign_up()
    body = {"identifier": user.username, "password": PASSWORD}
    return await service.http.post(
        "/api/v1/auth/login", json=body, headers=BROWSER | headers
    )


def cookie(response: httpx.Response) -> str:
    found = re.match(rf"{COOKIE}=([^;]+);", response.headers["set-cookie"])
    assert found
    return f"{COOKIE}={found[1]}"


async def refresh(
    service: Running, held: str, headers: dict[str, str], **body: str
) -> httpx.Response:
    return await service.http.post(
        "/api/v1/auth/refresh", json=body, headers=headers | {"cookie": held}
    )


async def test_the_token_is_in_the_cookie_alone(shared: Running) -> None:
    """R23: HttpOnly, Secure, SameSite=Strict, of this host; not in the body."""
    response = await log_in(shared)
    assert response.status_code == 200
    assert "refreshToken" not in response.json()
    assert response.json()["accessToken"]
    attributes = {part.strip() for part in response.headers["set-cookie"].split(";")}
    assert {"HttpOnly", "Secure", "SameSite=Strict", "Path=/"} <= attributes
    assert f"Max-Age={30 * 86400}" in attributes
    assert "no-store" in response.headers["cache-control"]


@pytest.mark.parametrize("mode", ["cookie, cookie", "header"])
async def test_a_slip_puts_no_token_into_a_body(shared: Running, mode: str) -> None:
    """R23: what is no mode is refused, not taken as none."""
    ana = await shared.signed_in()
    body = {"identifier": ana.user.username, "password": PASSWORD}
    headers = {**BROWSER, "x-token-mode": mode}
    answer = await shared.http.post("/api/v1/auth/login", json=body, headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (400, "INVALID_ARGUMENT")


async def test_it_is_refreshed_and_cleared(shared: Running) -> None:
    first = await log_in(shared)
    second = await refresh(shared, cookie(first), BROWSER)
    assert second.status_code == 200, second.text
    assert cookie(second) != cookie(first)
    access = second.json()["accessToken"]
    out = await shared.http.post(
        "/api/v1/auth/logout",
        headers=BROWSER | {"authorization": f"Bearer {access}"},
        json={},
    )
    assert out.status_code == 204
    assert "Max-Age=0" in out.headers["set-cookie"]
    ended = await refresh(shared, cookie(second), BROWSER)
    assert ended.status_code == 401


async def test_other_sites_cannot_use_it(shared: Running) -> None:
    """R24: a cross-site request, a foreign origin, a form: refused."""
    held = cookie(await log_in(shared))
    for wrong in (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "", "origin": "https://evil.example"},
    ):
        headers = {k: v for k, v in (BROWSER | wrong).items() if v}
        assert (await refresh(shared, held, headers)).status_code == 403
    form = BROWSER | {"content-type": "text/plain", "cookie": held}
    response = await shared.http.post(
        "/api/v1/auth/refresh", content=b"{}", headers=form
    )
    assert response.status_code == 415
    assert (await refresh(shared, held, BROWSER)).status_code == 200


async def test_a_cookie_and_a_value_are_one_too_many(shared: Running) -> None:
    held = cookie(await log_in(shared))
    response = await refresh(shared, held, BROWSER, refreshToken="x")
    assert response.status_code == 400


async def test_without_asking_nothing_changes(shared: Running) -> None:
    user = await shared.sign_up()
    body = {"identifier": user.username, "password": PASSWORD}
    response = await shared.http.post("/api/v1/auth/login", json=body)
    assert response.json()["refreshToken"]
    assert "set-cookie" not in response.headers
