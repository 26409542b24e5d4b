"""Traces through the whole application, and what it does without them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.trace import SpanKind, StatusCode

from blatam.user.v1 import user_pb2
from server.composition.edge.app import remote_edge
from server.composition.edge.upstream import connected_upstream
from server.config import load
from tests.running import PASSWORD, RunningService, running
from tests.spans import (
    children,
    named,
    parent_of,
    recorded_spans,
    trace_of,
    values,
)

LOGIN = "blatam.auth.v1.AuthService/Login"
ROUTE = "/api/v1/auth/login"
ROOT = Path(__file__).parents[2]
OTHER_PASSWORD = "Violet8parrot"


@pytest.mark.unsupported_in("no-redis", reason="expects spans of Redis")
async def test_rest_log_in_is_one_trace_of_edge_chain_sql_redis_and_hashing(
    database_url: str, redis_url: str
) -> None:
    async with (
        recorded_spans() as recorder,
        running(
            database_url, redis_url, tracing=recorder.tracing, rate_limits={}
        ) as service,
    ):
        await service.sign_up("ana")
        recorder.take()
        await log_in(service.http)
        spans = recorder.take()
    request = named(spans, f"POST {ROUTE}")
    spans = [span for span in spans if trace_of(span) == trace_of(request)]
    assert (parent_of(request), request.kind) == ("", SpanKind.SERVER)
    assert values(request) == {
        "http.request.method": "POST",
        "http.route": ROUTE,
        "http.response.status_code": 200,
        "url.scheme": "http",
    }
    (call,) = children(spans, request)
    assert (call.name, call.kind) == (LOGIN, SpanKind.SERVER)
    below = children(spans, call)
    systems = [values(span).get("db.system.name") for span in below]
    assert {"postgresql", "redis"} <= set(systems)
    assert {"SELECT", "WITH"} <= {span.name for span in below}
    assert named(below, "hash password").events[0].name == "started"
    statements = [str(values(span).get("db.query.text", "")) for span in below]
    assert any("$1" in text for text in statements)  # values are not in the text
    assert "ana" not in "".join(statements)


async def test_edge_in_another_process_and_server_make_one_trace(
    database_url: str, redis_url: str
) -> None:
    async with (
        recorded_spans() as recorder,
        running(database_url, redis_url, tracing=recorder.tracing) as service,
        connected_upstream(service.address, None) as upstream,
    ):
        await service.sign_up("ana")
        edge = remote_edge(upstream, load(), tracing=recorder.tracing)
        recorder.take()
        async with client_of(edge) as http:
            await log_in(http)
            response = await http.post(ROUTE, json={"identifier": "ana"})
            assert response.status_code == 400
            assert (await http.get("/api/v1/no-such-path")).status_code == 404
            assert (await http.get("/livez")).status_code == 200  # has no span
            assert (await http.request("FORGED", ROUTE)).status_code == 405
        spans = recorder.take()
    requests = [span for span in spans if span.name == f"POST {ROUTE}"]
    accepted, refused = (children(spans, request) for request in requests)
    assert [span.name for span in accepted] == [LOGIN]
    assert [values(span)["rpc.response.status_code"] for span in refused] == [
        "INVALID_ARGUMENT"
    ]
    others = [s for s in spans if "http.request.method" in values(s)]
    others = [s for s in others if s not in requests]
    assert {(s.name, values(s)["http.response.status_code"]) for s in others} == {
        ("GET", 404),
        ("HTTP", 405),
    }
    assert all(s.status.status_code is StatusCode.UNSET for s in requests + others)


async def test_unavailable_service_makes_error_span_of_request() -> None:
    """5xx is an error of the server; its text stays out of the span."""
    async with (
        recorded_spans() as recorder,
        connected_upstream("127.0.0.1:9", None) as upstream,
        client_of(remote_edge(upstream, load(), tracing=recorder.tracing)) as http,
    ):
        body = {"identifier": "ana", "password": PASSWORD}
        assert (await http.post(ROUTE, json=body)).status_code == 503
        (span,) = recorder.take()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert values(span)["error.type"] == "503"


async def test_span_has_no_secret_and_no_personal_data(
    database_url: str, redis_url: str
) -> None:
    """R39: not even where Postgres puts an e-mail address into an error."""
    async with (
        recorded_spans() as recorder,
        running(
            database_url, redis_url, tracing=recorder.tracing, rate_limits={}
        ) as service,
    ):
        canaries = await leave_canaries(service)
        await service.mailbox.mail("canary@example.com", "Welcome")
        spans = recorder.take()
    text = "".join(span.to_json() for span in spans)
    errors = [values(span).get("error.type") for span in spans]
    assert "UniqueViolationError" in errors
    assert "deliver mail.welcome" in {span.name for span in spans}
    assert not [canary for canary in canaries if canary in text]
    assert not [
        span for span in spans if any("exception" in e.name for e in span.events)
    ]


async def leave_canaries(service: RunningService) -> list[str]:
    """Send secrets and personal data in every place; return them."""
    account = {"email": "canary@example.com", "username": "canarius"}
    for username in ("canarius", "canarissa"):
        body = account | {"username": username, "password": PASSWORD}
        await service.http.post("/api/v1/users", json=body)
    tokens = (await service.log_in("canarius")).access_token
    headers = {
        "authorization": f"Bearer {tokens}",
        "user-agent": "canary-agent",
        "tracestate": "canary-vendor=canary-state",
        "x-note": "canary-note",
    }
    wrong = {"identifier": "canarius", "password": OTHER_PASSWORD}
    await service.http.post(ROUTE, json=wrong, headers=headers)
    await service.http.get(
        "/api/v1/users/me?access_token=canary-query", headers=headers
    )
    await service.http.post("/api/v1/unsubscribe/canary-token", headers=headers)
    await service.http.get("/api/v1/canary-path", headers=headers)
    return [PASSWORD, OTHER_PASSWORD, tokens, "canar"]


async def test_call_without_traces_runs_no_code_for_them(
    database_url: str, redis_url: str
) -> None:
    """Traces that are off cost nothing: not one Python call."""
    files: set[str] = set()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    async with running(database_url, redis_url) as service:
        user = await service.signed_in()
        sys.setprofile(count)
        try:
            await service.http.get("/api/v1/users/me", headers=user.headers)
            await service.users.GetCurrentUser(
                user_pb2.GetCurrentUserRequest(), metadata=user.metadata
            )
            await service.log_in(user.user.username)
        finally:
            sys.setprofile(None)
    assert any(name.endswith("interceptors/logging.py") for name in files)
    own = [name.removeprefix(str(ROOT)) for name in files if name.startswith(str(ROOT))]
    assert not [n for n in own if n.startswith(("/server", "/edge")) and "trac" in n]
    assert not [name for name in files if "opentelemetry" in name]


async def log_in(http: httpx.AsyncClient) -> None:
    body = {"identifier": "ana", "password": PASSWORD}
    assert (await http.post(ROUTE, json=body)).status_code == 200


@asynccontextmanager
async def client_of(edge: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(edge, client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://academy.test"
    ) as client:
        yield client
