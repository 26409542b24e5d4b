"""What callers see of an error, and what is in the log only."""

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
import structlog

from blatam.user.v1 import user_pb2 as pb
from edge.http.trusted_proxies import TrustedProxies
from edge.stepping import start
from edge.timers import SharedTimer
from server.domain.callers import ANONYMOUS
from server.domain.errors import InvalidFields, StoreUnavailable, Violation
from server.observability.logging import add_context
from server.observability.metrics.calls import CallMetrics
from server.rpc.call import Call, Failure, Method, Outcome, Stream, wrap_handler
from server.rpc.contract import read_method
from server.rpc.deadlines import TIMER_INTERVAL
from server.rpc.interceptors.errors import map_errors
from server.rpc.interceptors.logging import call_labels, record_calls
from server.rpc.listener import build_call
from tests.logs import captured_lines
from tests.running import RunningService
from tests.status import expect_rpc_error

TIMER = SharedTimer(TIMER_INTERVAL)

GET_USER = read_method(pb.DESCRIPTOR.services_by_name["UserService"].methods[1])
RECORD = record_calls(GET_USER, CallMetrics.of([call_labels(GET_USER)]))
SECRET = "postgresql://user:hunter2@db"
KIB = 1024
# Texts of the same length in characters, and of 1 to 4 bytes per character.
TEXTS = {"1 byte": "x", "2 bytes": "é", "3 bytes": "€", "4 bytes": "𝄞"}


def call(method: Method = GET_USER) -> Call:
    return Call(method, b"", {}, "192.0.2.1", "0123abcd")


async def broken(_call: Call) -> Outcome:
    raise ValueError(SECRET)


async def test_unexpected_exception_is_an_internal_error() -> None:
    """R38: the caller gets a request id; the log has the cause under this id."""
    proceed = wrap_handler([RECORD, map_errors(TIMER, start)], broken)
    with (
        structlog.testing.capture_logs([add_context]) as lines,
        pytest.raises(Failure) as caught,
    ):
        await proceed(call())
    assert caught.value.message == "internal error"
    assert SECRET.encode() not in caught.value.status
    assert b"0123abcd" in caught.value.status
    cause, end = lines
    assert cause["request_id"] == end["request_id"] == "0123abcd"
    assert SECRET in str(cause["exc_info"])
    assert (end["code"], end["log_level"]) == ("INTERNAL", "error")


async def test_exception_in_the_middle_of_a_stream_is_an_internal_error() -> None:
    """R38 holds for every message of a stream."""

    async def messages() -> Stream:
        yield b"1"
        raise ValueError(SECRET)

    async def stream(_call: Call) -> Outcome:
        return messages()

    outcome = await wrap_handler([RECORD, map_errors(TIMER, start)], stream)(call())
    assert not isinstance(outcome, bytes)
    assert await anext(outcome) == b"1"
    with pytest.raises(Failure, match="internal error"):
        await anext(outcome)


async def test_deadline_cancels_the_handler() -> None:
    cancelled = asyncio.Event()

    async def slow(_call: Call) -> Outcome:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    with pytest.raises(Failure) as caught:
        await wrap_handler([RECORD, map_errors(TIMER, start)], slow)(
            replace(call(), timeout=0.01)
        )
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert cancelled.is_set()


async def test_store_timeout_is_not_the_callers_deadline() -> None:
    """A store that times out is unavailable: the caller may retry."""

    async def unavailable(_call: Call) -> Outcome:
        raise StoreUnavailable from TimeoutError()

    proceed = wrap_handler([RECORD, map_errors(TIMER, start)], unavailable)
    with pytest.raises(Failure) as caught:
        await proceed(replace(call(), timeout=60))
    assert caught.value.reason == "STORE_UNAVAILABLE"


async def test_cancellation_passes_through_the_chain() -> None:
    async def slow(_call: Call) -> Outcome:
        await asyncio.sleep(60)
        return b""

    proceed = wrap_handler([RECORD, map_errors(TIMER, start)], slow)
    with captured_lines(event="call") as lines:
        task = asyncio.ensure_future(proceed(call()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert [line["code"] for line in lines] == ["CANCELLED"]


@pytest.mark.parametrize("name", TEXTS)
async def test_details_are_bounded_in_bytes(name: str) -> None:
    """Clients refuse metadata above 8 KiB: status and message together are below."""
    text = TEXTS[name] * 10_000

    async def refuse(_call: Call) -> Outcome:
        raise InvalidFields([Violation(text, text, "rule")] * 1_000)

    with pytest.raises(Failure) as caught:
        await map_errors(TIMER, start)(call(), refuse)
    message = caught.value.message
    assert len(caught.value.status) <= 6 * KIB
    # gRPC percent-encodes the message: up to three bytes for one
    encoded = sum(1 if char.isascii() else 3 * len(char.encode()) for char in message)
    assert len(caught.value.status) + encoded <= 7.5 * KIB
    assert message.endswith(TEXTS[name])  # no character is cut in two
    assert caught.value.status.count(b"rule") >= 10


@pytest.mark.parametrize("name", TEXTS)
async def test_many_violations_reach_a_grpc_client(
    shared: RunningService, name: str
) -> None:
    """The same code each time, not RESOURCE_EXHAUSTED from the client's limit."""
    caller = await shared.signed_in()
    request = pb.UpdateUserRequest(user=pb.User(id=caller.user.id))
    request.update_mask.paths.extend(f"{TEXTS[name] * 300}{n}" for n in range(30))
    error = await asyncio.gather(
        *(
            expect_rpc_error(shared.users.UpdateUser(request, metadata=caller.metadata))
            for _ in range(40)
        )
    )
    assert {each.reason for each in error} == {"INVALID_FIELDS"}


async def test_undecodable_bytes_are_a_malformed_request(
    shared: RunningService,
) -> None:
    """R32: not UNKNOWN with the name of an exception."""
    login: Any = shared.channel.unary_unary("/blatam.auth.v1.AuthService/Login")
    error = await expect_rpc_error(login(b"\xff\xff"))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "MALFORMED_REQUEST"
    assert error.message == (
        "the request body is not a valid blatam.auth.v1.LoginRequest message"
    )


async def test_oversized_message_is_refused(shared: RunningService) -> None:
    """R34: by the transport, before it is decoded."""
    request = pb.CreateUserRequest(email="x" * 2**21)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shared.users.CreateUser(request)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_call_starts_anonymous() -> None:
    assert call().caller is ANONYMOUS


@pytest.mark.parametrize(
    ("request_id", "trusted", "accepted"),
    [
        ("0123abcd-4567", True, True),
        ("0123abcd-4567", False, False),
        ("short", True, False),
        ("x" * 65, True, False),
        ("٠١٢٣٤٥٦٧", True, False),
        ("0123 abcd", True, False),
        ("", True, False),
    ],
)
def test_request_id_is_taken_from_trusted_peers_only(
    request_id: str, trusted: bool, accepted: bool
) -> None:
    """An id that is too long or has other characters is replaced by a new one."""
    pairs = [("x-request-id", request_id)]
    proxies = TrustedProxies(())
    built = build_call(GET_USER, b"", pairs, "192.0.2.1", trusted, proxies)
    assert (built.request_id == request_id) is accepted
    assert len(built.request_id) >= 8
