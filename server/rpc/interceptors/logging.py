"""Counts each call and writes one log line for it, with its final code and total time.

One interceptor does both: so counts and log lines agree, and a second one would cost as
much again as all that it counts.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from time import perf_counter

import grpc

from server.observability.logging import log_event, request_id
from server.observability.metrics.calls import (
    CODES,
    OTHER,
    SERVER_STREAM,
    UNARY,
    UNIMPLEMENTED,
    CallCounts,
    CallLabels,
    CallMetrics,
    Transport,
)
from server.rpc.call import (
    Call,
    Failure,
    Interceptor,
    Method,
    Outcome,
    Proceed,
    Stream,
)

_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
_CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]
_UNKNOWN: int = grpc.StatusCode.UNKNOWN.value[0]  # what gRPC makes of an exception
_SERVER_ERRORS = {grpc.StatusCode.INTERNAL.value[0], _UNKNOWN}
_RATE_LIMITED = "RATE_LIMITED"


def call_labels(method: Method) -> CallLabels:
    """Return the labels of a method's metrics."""
    service, _, name = method.name.partition("/")
    return CallLabels(SERVER_STREAM if method.streams else UNARY, service, name)


def record_calls(method: Method, metrics: CallMetrics) -> Interceptor:
    """Return the interceptor that counts and logs the calls of one RPC.

    Lines that are logged inside a call carry its request id.
    """
    by_transport = metrics.of_method(call_labels(method))

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        request_id.set(call.request_id)
        counts = by_transport[call.transport]
        started = perf_counter()
        counts.start()
        try:
            outcome = await proceed(call)
        except BaseException as error:
            _fail(call, counts, started, error)
            raise
        if not isinstance(outcome, bytes):
            return _record_stream(call, counts, started, outcome)
        _end(call, counts, started, 0)
        return outcome

    return intercept


def record_unknown_call(metrics: CallMetrics, transport: Transport) -> None:
    """Count and log a call of an unknown method, which is refused at once.

    The method's name is the client's text, and so it is in neither.
    """
    metrics.count_unknown(transport)
    fields = {"method": OTHER, "code": CODES[UNIMPLEMENTED], "ms": 0.0}
    log_event(logging.INFO, "call", fields)


async def _record_stream(
    call: Call, counts: CallCounts, started: float, messages: Stream
) -> Stream:
    sent = 0
    counts.open_stream()
    try:
        async with aclosing(messages):
            async for message in messages:
                sent += 1
                counts.send()
                yield message
                # Each message may be read by another task, with its own context.
                request_id.set(call.request_id)
    except BaseException as error:  # GeneratorExit: the client has left
        request_id.set(call.request_id)
        _fail(call, counts, started, error, sent)
        raise
    else:
        _end(call, counts, started, 0, "", sent)
    finally:
        counts.close_stream()


def _fail(
    call: Call,
    counts: CallCounts,
    started: float,
    error: BaseException,
    sent: int | None = None,
) -> None:
    """Record a call that an exception ended."""
    code, reason = _UNKNOWN, ""
    if isinstance(error, Failure):
        code, reason = error.code, error.reason
    elif isinstance(error, asyncio.CancelledError | GeneratorExit):
        code = _CANCELLED
    if reason == _RATE_LIMITED:
        counts.limit()
    _end(call, counts, started, code, reason, sent)


def _end(
    call: Call,
    counts: CallCounts,
    started: float,
    code: int,
    reason: str = "",
    sent: int | None = None,
) -> None:
    seconds = perf_counter() - started
    counts.end(code, seconds)
    fields: dict[str, object] = {
        "method": call.method.path,
        "code": _NAMES[code],
        "ms": round(seconds * 1000, 3),
        "caller": call.caller.subject,
        "address": call.address,
    }
    if call.caller.actor_id:
        fields["actor"] = call.caller.actor
    if call.caller.certificate:
        fields["certificate"] = call.caller.certificate
    if reason:
        fields["reason"] = reason
    if sent is not None:
        fields["sent"] = sent
    if call.method.policy.audit:
        fields["audit"] = call.method.policy.audit
    level = logging.ERROR if code in _SERVER_ERRORS else logging.INFO
    log_event(level, "call", fields)
