"""What callers see when something goes wrong, and what only the log sees."""

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
import structlog

from blatam.user.v1 import user_pb2 as pb
from server.domain.callers import ANONYMOUS
from server.domain.errors import StoreUnavailable
from server.observability.logging import add_context
from server.rpc.call import Call, Failure, Method, Outcome, Stream, chained
from server.rpc.contract import read_method
from server.rpc.interceptors.errors import failing
from server.rpc.interceptors.logging import logged
from tests.running import Running
from tests.status import refusal

GET_USER = read_method(pb.DESCRIPTOR.services_by_name["UserService"].methods[1])
SECRET = "postgresql://user:hunter2@db"


def call(method: Method = GET_USER) -> Call:
    return Call(method, b"", {}, "192.0.2.1", "0123abcd")


async def broken(_call: Call) -> Outcome:
    raise ValueError(SECRET)


async def test_the_unexpected_stays_inside() -> None:
    """R38: the caller learns a request id; the log has the cause under it."""
    proceed = chained([logged, failing], broken)
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


async def test_a_stream_that_breaks_later_says_no_more() -> None:
    """R38 holds for every message of a stream, not for its start alone."""

    async def messages() -> Stream:
        yield b"1"
        raise ValueError(SECRET)

    async def stream(_call: Call) -> Outcome:
        return messages()

    outcome = await chained([logged, failing], stream)(call())
    assert not isinstance(outcome, bytes)
    assert await anext(outcome) == b"1"
    with pytest.raises(Failure, match="internal error"):
        await anext(outcome)


async def test_the_deadline_ends_the_work() -> None:
    """The work is cancelled at the deadline, and the caller told so."""
    cancelled = asyncio.Event()

    async def slow(_call: Call) -> Outcome:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    hurried = replace(call(), timeout=0.01)
    with pytest.raises(Failure) as caught:
        await chained([logged, failing], slow)(hurried)
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert cancelled.is_set()


async def test_a_timeout_of_a_store_is_no_deadline() -> None:
    """A store that times out on its own is unavailable, and may be tried again."""

    async def away(_call: Call) -> Outcome:
        raise StoreUnavailable from TimeoutError()

    with pytest.raises(Failure) as caught:
        await chained([logged, failing], away)(replace(call(), timeout=60))
    assert caught.value.reason == "STORE_UNAVAILABLE"


async def test_cancellation_is_not_swallowed() -> None:
    async def slow(_call: Call) -> Outcome:
        await asyncio.sleep(60)
        return b""

    with structlog.testing.capture_logs() as lines:
        task = asyncio.ensure_future(chained([logged, failing], slow)(call()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert [line["code"] for line in lines] == ["CANCELLED"]


async def test_undecodable_bytes(shared: Running) -> None:
    """R32: bad input, not UNKNOWN with an exception's name."""
    login: Any = shared.channel.unary_unary("/blatam.auth.v1.AuthService/Login")
    refused = await refusal(login(b"\xff\xff"))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "MALFORMED_REQUEST"


async def test_oversized_messages(shared: Running) -> None:
    """R34: refused by the transport, before anything is decoded."""
    request = pb.CreateUserRequest(email="x" * 2**21)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shared.users.CreateUser(request)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_nobody_is_nobody() -> None:
    """A call begins without a caller."""
    assert call().caller is ANONYMOUS
