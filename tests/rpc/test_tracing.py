"""Spans of calls: one for each, on every transport, in the trace of their caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
import pytest_asyncio
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from blatam.policy.v1.policy_pb2 import Access, MethodPolicy
from blatam.user.v1 import user_pb2 as pb
from edge.remote.batching import BatchingPort
from server.domain.accounts.users import Role
from server.observability.metrics.calls import CODES
from server.rpc.call import (
    Call,
    Failure,
    Interceptor,
    Method,
    Outcome,
    Stream,
    wrap_handler,
)
from server.rpc.interceptors.tracing import trace_calls
from tests.running import RunningService, SignedInUser, running
from tests.spans import Recorder, named, parent_of, recorded_spans, trace_of, values

GET_CURRENT_USER = "/blatam.user.v1.UserService/GetCurrentUser"
CALL = GET_CURRENT_USER[1:]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
POLICY = MethodPolicy(access=Access.ACCESS_PUBLIC)
UNARY = Method("/t.Numbers/Get", pb.GetUserRequest, POLICY, streams=False)
STREAM = Method("/t.Numbers/Count", pb.GetUserRequest, POLICY, streams=True)


@pytest_asyncio.fixture
async def recorder() -> AsyncIterator[Recorder]:
    async with recorded_spans() as recorder:
        yield recorder


def call_of(method: Method) -> Call:
    return Call(method, b"", {}, "192.0.2.1", "0123abcd")


async def call_by(
    transport: str, service: RunningService, user: SignedInUser, traceparent: str
) -> None:
    """Call GetCurrentUser with trace headers."""
    headers = {
        "authorization": f"Bearer {user.tokens.access_token}",
        "traceparent": traceparent,
        "tracestate": "vendor=value",
    }
    if transport == "rest":
        response = await service.http.get("/api/v1/users/me", headers=headers)
        assert response.is_success
        return
    port = BatchingPort(service.channel) if transport == "batch" else service.port
    metadata = tuple(headers.items())
    if transport == "grpc":
        await service.users.GetCurrentUser(
            pb.GetCurrentUserRequest(), metadata=metadata
        )
    else:
        await port.unary(GET_CURRENT_USER, b"", metadata=metadata, timeout=30)


@pytest.mark.parametrize(
    ("trusted", "ratio", "traceparent", "recorded"),
    [
        (False, 1.0, SAMPLED, True),
        (False, 1.0, NOT_SAMPLED, True),  # a client cannot hide its calls
        (False, 0.0, SAMPLED, False),  # nor cause the cost of a recorded trace
        (False, 0.0, f"00-{'1':>032}-{PARENT}-01", False),  # nor by the trace id
        (True, 0.0, SAMPLED, True),
        (True, 1.0, NOT_SAMPLED, False),
        (True, 0.0, "", False),
        (True, 1.0, "", True),
    ],
)
async def test_only_trusted_peer_decides_sampling(
    trusted: bool, ratio: float, traceparent: str, recorded: bool
) -> None:
    headers = {"traceparent": traceparent, "tracestate": "vendor=value"}
    async with recorded_spans(ratio) as recorder:
        parent = recorder.tracing.remote_parent(headers, trusted)
        span = recorder.tracing.tracer.start_span("call", parent)
        assert span.is_recording() is recorded


async def test_untrusted_peers_are_sampled_at_ratio() -> None:
    """One trace id, which the client repeats, is recorded in some of its calls."""
    async with recorded_spans(0.5) as recorder:
        tracing = recorder.tracing
        parents = [
            tracing.remote_parent({"traceparent": SAMPLED}, False) for _ in range(1_000)
        ]
        spans = [tracing.tracer.start_span("call", parent) for parent in parents]
    assert 400 < sum(span.is_recording() for span in spans) < 600


@pytest.mark.parametrize(
    "traceparent",
    ["", "00-1-2-01", f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", b"\xff"],
)
@pytest.mark.parametrize("trusted", [True, False])
async def test_invalid_traceparent_starts_new_trace(
    recorder: Recorder, traceparent: str | bytes, trusted: bool
) -> None:
    parent = recorder.tracing.remote_parent({"traceparent": traceparent}, trusted)
    recorder.tracing.tracer.start_span("call", parent).end()
    (span,) = recorder.take()
    assert (parent_of(span), trace_of(span) != TRACE) == ("", True)


@pytest.mark.parametrize("trusted", [True, False])
async def test_traceparent_joins_trace_on_every_transport(
    database_url: str, redis_url: str, trusted: bool
) -> None:
    """W3C Trace Context; the header of a trusted peer is followed in full."""
    proxies = ["127.0.0.1/32", "192.0.2.7/32"] if trusted else []
    async with (
        recorded_spans(0.0 if trusted else 1.0) as recorder,
        running(
            database_url, redis_url, tracing=recorder.tracing, trusted_proxies=proxies
        ) as service,
    ):
        user = await service.signed_in()
        recorder.take()
        for transport in ("grpc", "batch", "rest"):
            traceparent = SAMPLED if trusted else NOT_SAMPLED
            await call_by(transport, service, user, traceparent)
            spans = [span for span in recorder.take() if trace_of(span) == TRACE]
            rest = transport == "rest"
            outermost = named(spans, "GET /api/v1/users/me" if rest else CALL)
            assert parent_of(outermost) == PARENT
            assert outermost.context is not None
            state = outermost.context.trace_state.to_header()
            assert state == ("vendor=value" if trusted else "")


@pytest.mark.parametrize("code", range(1, len(CODES)))
async def test_span_is_error_for_server_codes_only(
    recorder: Recorder, code: int
) -> None:
    """Semantic conventions: a server's span is no error where the client's call is."""

    async def fail(_: Call) -> Outcome:
        raise Failure(code, "secret text", b"", "REASON")

    proceed = wrap_handler([traced(UNARY, recorder)], fail)
    with pytest.raises(Failure):
        await proceed(call_of(UNARY))
    (span,) = recorder.take()
    is_error = CODES[code] in {
        "UNKNOWN",
        "DEADLINE_EXCEEDED",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
    }
    assert span.kind is SpanKind.SERVER
    assert span.status.status_code is (
        StatusCode.ERROR if is_error else StatusCode.UNSET
    )
    assert values(span) == {
        "rpc.system.name": "grpc",
        "rpc.method": "t.Numbers/Get",
        "rpc.response.status_code": CODES[code],
        **({"error.type": CODES[code]} if is_error else {}),
    }
    assert "secret text" not in span.to_json()


def traced(method: Method, recorder: Recorder) -> Interceptor:
    interceptor = trace_calls(method, recorder.tracing)
    assert interceptor is not None
    return interceptor


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (asyncio.CancelledError(), "CANCELLED"),
        (ValueError("a defect"), "UNKNOWN"),
    ],
)
async def test_span_of_call_without_status_ends(
    recorder: Recorder, error: BaseException, code: str
) -> None:
    async def fail(_: Call) -> Outcome:
        raise error

    with pytest.raises(type(error)):
        await wrap_handler([traced(UNARY, recorder)], fail)(call_of(UNARY))
    (span,) = recorder.take()
    assert values(span)["rpc.response.status_code"] == code
    assert not get_current_span().get_span_context().is_valid


@pytest.mark.parametrize(
    ("messages", "error", "code"),
    [
        (3, None, "OK"),
        (1, None, "CANCELLED"),
        (3, Failure(13, "", b"", ""), "INTERNAL"),
    ],
)
async def test_span_of_stream_ends_with_stream(
    recorder: Recorder, messages: int, error: Failure | None, code: str
) -> None:
    """Each message may be read by another task: the span is current in the producer.

    It is never current in the reader, which may serve other calls.
    """
    current: list[int] = []

    async def count(_: Call) -> Outcome:
        return numbers()

    async def numbers() -> Stream:
        try:
            for number in range(2):
                current.append(get_current_span().get_span_context().span_id)
                yield b"%d" % number
            if error:
                raise error
        finally:
            current.append(get_current_span().get_span_context().span_id)

    outcome = await wrap_handler([traced(STREAM, recorder)], count)(call_of(STREAM))
    assert not isinstance(outcome, bytes)
    assert not recorder.take()
    async with aclosing(outcome):
        for _ in range(messages):
            try:
                await asyncio.ensure_future(anext(outcome))
            except (StopAsyncIteration, Failure):
                break
            assert not get_current_span().get_span_context().is_valid
            assert not recorder.take()
    (span,) = recorder.take()
    assert span.context is not None
    assert values(span)["rpc.response.status_code"] == code
    assert set(current) == {span.context.span_id}


async def test_stream_over_grpc_has_span_until_client_leaves(
    database_url: str, redis_url: str, recorder: Recorder
) -> None:
    """Statements that a stream executes are in its trace."""
    async with running(database_url, redis_url, tracing=recorder.tracing) as service:
        admin = await service.signed_in(role=Role.ADMIN)
        recorder.take()
        export = service.users.ExportUsers(
            pb.ExportUsersRequest(), metadata=admin.metadata
        )
        assert [message async for message in export]
        spans = recorder.take()
        exported = named(spans, "blatam.user.v1.UserService/ExportUsers")
        # deliveries of what the log-in wrote may read accounts at the same time
        reads = [
            span
            for span in spans
            if span.name == "SELECT"
            and "order by id limit" in str(values(span)["db.query.text"])
        ]
        assert {trace_of(span) for span in reads} == {trace_of(exported)}
        watch = service.users.WatchUsers(
            pb.WatchUsersRequest(), metadata=admin.metadata
        )
        await watch.read()
        assert "WatchUsers" not in str([span.name for span in recorder.take()])
        watch.cancel()
        async with asyncio.timeout(10):
            while not (spans := recorder.take()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        ended = named(spans, "blatam.user.v1.UserService/WatchUsers")
        unknown: Any = service.channel.unary_unary(
            "/blatam.user.v1.UserService/Nothing"
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await unknown(b"")
        assert not recorder.take()  # names of spans come from the contract
    assert values(ended)["rpc.response.status_code"] == "CANCELLED"
