"""Tokens of browsers in cookies."""

from typing import Any

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from edge.app import create_app
from edge.config import EdgeSettings, TokenCookie
from edge.port import CallError, Reply
from tests.edge.service import (
    FakePort,
    compiled,
    raw,
)
from tests.edge.shop import SHOP, kind, shop, violations

COOKIES = EdgeSettings(
    public_url="https://shop.example",
    cookies=(
        TokenCookie(
            name="refresh",
            reply_fields={
                "/shop.v1.Shop/Login": "tokens.refresh",
                "/shop.v1.Shop/Refresh": "tokens.refresh",
            },
            request_fields={"/shop.v1.Shop/Refresh": "refresh"},
            max_age_fields={"/shop.v1.Shop/Login": "tokens.lives"},
            cleared_by=frozenset(("/shop.v1.Shop/Logout",)),
            invalid_reasons=frozenset(("TOKEN_INVALID",)),
        ),
    ),
)


MODE = {"x-token-mode": "cookie", "origin": "https://shop.example"}


def tokens() -> Any:
    made = kind("Tokens")(access="a" * 2000, refresh="r-1", lives=60)
    return kind("LoginResponse")(tokens=made)


async def test_token_is_in_the_cookie_only() -> None:
    """R23: `__Host-`, HttpOnly, Secure, SameSite=Strict; not stored."""
    http = shop(FakePort(tokens()), COOKIES)
    answer = await http.post("/login", json={"name": "a"}, headers=MODE)
    assert answer.headers["set-cookie"] == (
        "__Host-refresh=r-1; Path=/; HttpOnly; Secure; SameSite=Strict; Max-Age=60"
    )
    assert "refresh" not in answer.json()
    assert answer.json()["access"] == "a" * 2000
    assert answer.headers["cache-control"] == "no-store"
    assert "content-encoding" not in answer.headers
    plain = await http.post("/login", json={"name": "a"})
    assert "set-cookie" not in plain.headers
    assert plain.json()["refresh"] == "r-1"


async def test_reply_without_a_token_sets_no_cookie() -> None:
    """Another member of the reply's oneof is set."""
    question = kind("LoginResponse")(question=kind("Question")(text="why?"))
    answer = await shop(FakePort(question), COOKIES).post(
        "/login", json={"name": "a"}, headers=MODE
    )
    assert answer.json() == {"question": {"text": "why?"}}
    assert "set-cookie" not in answer.headers


async def test_cookie_fills_its_request_field() -> None:
    """Together with a value in the body it is 400, even an equal one."""
    port = FakePort(tokens())
    http = shop(port, COOKIES)
    browser = {**MODE, "cookie": "x; other=1; __Host-refresh=r-0"}
    answer = await http.post("/refresh", headers=browser)
    assert answer.status_code == 200, answer.text
    assert kind("RefreshRequest").FromString(port.request).refresh == "r-0"
    answer = await http.post("/refresh", json={"refresh": "r-0"}, headers=browser)
    assert (answer.status_code, violations(answer)) == (400, ["refresh"])
    assert answer.json()["error"] == "refresh: must not be set twice"
    bare = {"cookie": "__Host-refresh=r-0"}
    await http.post("/refresh", json={}, headers=bare)
    assert kind("RefreshRequest").FromString(port.request).refresh == ""


async def test_logout_clears_the_cookie() -> None:
    """Max-Age=0 on the replies of the methods in `cleared_by`."""
    answer = await shop(FakePort(Reply(b"")), COOKIES).post("/logout", headers=MODE)
    assert answer.status_code == 204
    assert answer.headers["set-cookie"].startswith("__Host-refresh=; ")
    assert "Max-Age=0" in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    ("reason", "headers", "cleared"),
    [
        ("TOKEN_INVALID", {**MODE, "cookie": "__Host-refresh=x"}, True),
        ("TOKEN_INVALID", MODE, False),
        ("TOKEN_INVALID", {"cookie": "__Host-refresh=x"}, False),
        ("PASSWORD_INVALID", {**MODE, "cookie": "__Host-refresh=x"}, False),
    ],
)
async def test_invalid_token_clears_its_cookie(
    reason: str, headers: dict[str, str], *, cleared: bool
) -> None:
    """Only in cookie mode, and only for an error about the cookie's token."""
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="shop.example"))
    status = status_pb2.Status(code=16, details=[info]).SerializeToString()
    http = shop(FakePort(CallError(16, "no", status)), COOKIES)
    answer = await http.post("/refresh", json={}, headers=headers)
    assert (answer.status_code, answer.json()["errorCode"]) == (401, reason)
    cookie = answer.headers.get("set-cookie", "")
    assert cookie.startswith("__Host-refresh=; ") is cleared
    assert ("Max-Age=0" in cookie) is cleared


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "https://b.shop.example"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": ""}, 415),
        ({}, 200),
    ],
)
async def test_cookie_mode_refuses_other_origins(
    headers: dict[str, str], code: int
) -> None:
    """R24: Origin and Sec-Fetch-Site are checked, and the body is application/json."""
    sent = {"x-token-mode": "cookie", "content-type": "application/json", **headers}
    http = shop(FakePort(tokens()), COOKIES)
    answer = await http.post("/login", content=b"{}", headers=sent)
    assert answer.status_code == code


async def test_cookie_on_plain_loopback_in_debug_has_no_prefix() -> None:
    """A browser refuses a Secure cookie of a plain-http page."""
    settings = EdgeSettings(cookies=COOKIES.cookies, debug=True)
    port = FakePort(tokens())
    http = shop(port, settings)
    mode = {"x-token-mode": "cookie"}
    answer = await http.post("/login", json={}, headers=mode)
    assert answer.headers["set-cookie"].startswith("refresh=r-1; Path=/; HttpOnly; Sa")
    await http.post("/refresh", headers={**mode, "cookie": "refresh=r-1"})
    assert kind("RefreshRequest").FromString(port.request).refresh == "r-1"


@pytest.mark.parametrize("mode", [{}, MODE])
async def test_tokens_are_not_stored_in_either_mode(mode: dict[str, str]) -> None:
    """RFC 6749 5.1: an answer with tokens is never kept by a cache."""
    answer = await shop(FakePort(tokens()), COOKIES).post(
        "/login", json={}, headers=mode
    )
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    accept = mode | {"accept-encoding": "gzip"}
    answer = await shop(FakePort(tokens()), COOKIES).post(
        "/login", json={}, headers=accept
    )
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize("mode", [{}, MODE])
async def test_logout_clears_the_data_of_the_site(mode: dict[str, str]) -> None:
    """ASVS 14.3.1: what the browser stored of the session; only if it has ended."""
    answer = await shop(FakePort(Reply(b"")), COOKIES).post("/logout", headers=mode)
    assert answer.headers["clear-site-data"] == '"cache", "storage"'
    failed = FakePort(CallError(16, "no"))
    answer = await shop(failed, COOKIES).post("/logout", headers=mode)
    assert "clear-site-data" not in answer.headers
    answer = await shop(FakePort(tokens()), COOKIES).post(
        "/login", json={}, headers=mode
    )
    assert "clear-site-data" not in answer.headers


@pytest.mark.parametrize("mode", [b"cookie ", b" Cookie", b"cookie\t"])
async def test_token_mode_is_read_without_white_space(mode: bytes) -> None:
    """RFC 9110 5.5: optional white space is no part of a field value."""
    app = create_app(compiled(SHOP), FakePort(tokens()), COOKIES)
    headers = [(b"x-token-mode", mode), (b"content-type", b"application/json")]
    code, response, _ = await raw(app, "POST", "/login", headers, b"{}")
    assert code == 200
    assert dict(response)[b"set-cookie"].startswith(b"__Host-refresh=r-1")
