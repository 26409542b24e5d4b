"""Statuses, caching, security headers and errors of responses."""

import logging

import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

from edge.config import EdgeSettings
from edge.port import CallError, Reply
from tests.edge.service import (
    FakePort,
    status,
)
from tests.edge.shop import events, item, kind, shop


async def test_response_has_status_and_caching() -> None:
    """201 for Create, 204 for a reply without fields; private, revalidated."""
    port = FakePort(kind("CreateItemResponse")(item=kind("Item")(id=1)))
    answer = await shop(port).post("/items", json={"name": "a"})
    assert answer.status_code == 201
    assert answer.json()["id"] == "1"
    assert answer.headers["cache-control"] == "private, no-cache"
    assert {"Authorization", "Cookie"} <= set(answer.headers["vary"].split(", "))
    answer = await shop(FakePort(Reply(b""))).delete("/items/1")
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-length" not in answer.headers


async def test_public_response_is_cacheable() -> None:
    """`public_max_age` names the methods whose replies do not depend on the caller."""
    settings = EdgeSettings(public_max_age={"/shop.v1.Shop/GetItem": 300})
    answer = await shop(FakePort(item(id=1)), settings).get("/items/1")
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert "Authorization" not in answer.headers["vary"]


async def test_error_has_the_details_of_its_status() -> None:
    """ErrorInfo's reason, RetryInfo as Retry-After, unknown details in base64."""
    rpc = error_details_pb2
    info = rpc.ErrorInfo(reason="TOO_MANY", domain="shop", metadata={"n": "5"})
    retry = rpc.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2, nanos=5))
    packed = status(8, "slow down", info, retry, item(id=1), rpc.QuotaFailure())
    broken = packed.replace(b"shop.v1.GetItemResponse", b"shop.v1.NoItemResponse2")
    answer = await shop(FakePort(CallError(8, "slow down", broken))).get("/items/1")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    body = answer.json()
    assert (body["error"], body["errorCode"]) == ("slow down", "TOO_MANY")
    assert (body["status"], body["code"]) == ("RESOURCE_EXHAUSTED", 8)
    assert body["requestId"] == answer.headers["x-request-id"]
    kinds = [detail["@type"].rpartition(".")[2] for detail in body["details"]]
    assert kinds == ["ErrorInfo", "RetryInfo", "NoItemResponse2", "QuotaFailure"]
    assert isinstance(body["details"][2]["value"], str)
    answer = await shop(FakePort(CallError(16, "who?"))).get("/items/1")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json()["errorCode"] == "UNAUTHENTICATED"
    answer = await shop(FakePort(CallError(5, "no", b"\xff"))).get("/items/1")
    assert (answer.status_code, answer.json()["details"]) == (404, [])


STEP_UP = EdgeSettings(step_up_reason="STEP_UP")


@pytest.mark.parametrize(
    ("reason", "metadata", "header"),
    [
        (
            "STEP_UP",
            {"acr_values": "aal2", "max_age": "600", "other": "1"},
            'Bearer error="insufficient_user_authentication", acr_values="aal2", '
            'max_age="600"',
        ),
        (
            "STEP_UP",
            {"max_age": "600"},
            'Bearer error="insufficient_user_authentication", max_age="600"',
        ),
        (  # what would end the quotes or the line is left out
            "STEP_UP",
            {"acr_values": 'a", evil="1', "max_age": "1\r\nx: y"},
            'Bearer error="insufficient_user_authentication"',
        ),
        ("TOKEN_INVALID", {"acr_values": "aal2"}, "Bearer"),
    ],
)
async def test_step_up_says_which_log_in_is_needed(
    reason: str, metadata: dict[str, str], header: str
) -> None:
    """RFC 9470 3, from the metadata of the reason in the settings alone."""
    info = error_details_pb2.ErrorInfo(reason=reason, metadata=metadata)
    port = FakePort(CallError(16, "no", status(16, "no", info)))
    answer = await shop(port, STEP_UP).get("/items/1")
    assert answer.status_code == 401
    assert answer.headers.get_list("www-authenticate") == [header]
    unset = await shop(port).get("/items/1")
    assert unset.headers["www-authenticate"] == "Bearer"


async def test_other_member_of_a_oneof_is_sent_under_its_name() -> None:
    """`response_body` names one member; nobody takes another one for it."""
    reply = kind("LoginResponse")
    question = reply(question=kind("Question")(text="why?"))
    answer = await shop(FakePort(question)).post("/login", json={})
    assert answer.json() == {"question": {"text": "why?"}}
    answer = await shop(FakePort(question)).post(
        "/login", json={}, headers={"accept": "application/protobuf"}
    )
    assert answer.content == question.SerializeToString()
    tokens = reply(tokens=kind("Tokens")(access="a"))
    answer = await shop(FakePort(tokens)).post("/login", json={})
    assert answer.json() == {"access": "a", "refresh": "", "lives": 0}
    answer = await shop(FakePort(reply())).post("/login", json={})
    assert answer.json() == {"access": "", "refresh": "", "lives": 0}


async def test_unexpected_error_is_500_without_details(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """R38: the cause is in the log, under the request's id."""

    async def fail() -> None:
        raise RuntimeError("postgresql://user:SECRET@db")

    with caplog.at_level(logging.ERROR, logger="edge"):
        answer = await shop(FakePort(then=fail)).get("/items/1")
    assert answer.status_code == 500
    assert answer.json()["error"] == "internal error"
    assert "SECRET" not in answer.text
    record = caplog.records[0]
    assert record.__dict__["request_id"] == answer.json()["requestId"]
    assert "SECRET" in caplog.text


async def test_health_checks_report_liveness_and_readiness() -> None:
    """/livez always, /readyz by the check in the settings."""
    ready = [True]

    async def is_ready() -> bool:
        return ready[0]

    http = shop(FakePort(), EdgeSettings(ready=is_ready))
    assert (await http.get("/livez")).status_code == 200
    assert (await http.get("/readyz")).status_code == 200
    ready[0] = False
    assert (await http.get("/readyz")).status_code == 503
    assert (await shop(FakePort()).get("/docs")).status_code == 404


SECURITY_HEADERS = {
    "content-security-policy": "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@pytest.mark.parametrize(
    "path", ["/items/1", "/nowhere", "/items:watch", "/openapi.json"]
)
async def test_every_json_answer_has_security_headers(path: str) -> None:
    """ASVS 3.4: no framing, no referrer, no sniffing; HSTS where the site is https."""
    for url, hsts in (("https://shop.example", True), ("http://shop.example", False)):
        settings = EdgeSettings(public_url=url, docs=True)
        port = FakePort(item(id=1), stream=events("a"))
        answer = await shop(port, settings).get(path)
        assert answer.headers["content-type"] == "application/json"
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value
        value = answer.headers.get("strict-transport-security", "")
        assert value.startswith("max-age=31536000") is hsts


async def test_listener_with_tls_has_hsts_without_public_url() -> None:
    """ASVS 3.4.1: the public URL may be unknown; also on pages and health checks."""
    http = shop(FakePort(), EdgeSettings(tls=True, docs=True))
    for path in ("/nowhere", "/docs", "/livez", "/readyz"):
        value = (await http.get(path)).headers["strict-transport-security"]
        assert value == "max-age=31536000; includeSubDomains"


@pytest.mark.parametrize("code", [8, 14])
async def test_every_429_and_503_has_retry_after(code: int) -> None:
    """With the delay of the service, else with one of the settings."""
    for delay, expected in ((None, "7"), (0, "7"), (3, "3")):
        details = []
        if delay is not None:
            retry = duration_pb2.Duration(seconds=delay)
            details = [error_details_pb2.RetryInfo(retry_delay=retry)]
        error = CallError(code, "no", status(code, "no", *details))
        settings = EdgeSettings(retry_after=7)
        answer = await shop(FakePort(error), settings).get("/items/1")
        assert answer.status_code in (429, 503)
        assert answer.headers["retry-after"] == expected


async def test_failed_readiness_has_retry_after() -> None:
    """A check that raises counts as not ready."""

    async def fail() -> bool:
        raise RuntimeError

    answer = await shop(FakePort(), EdgeSettings(ready=fail, retry_after=7)).get(
        "/readyz"
    )
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
