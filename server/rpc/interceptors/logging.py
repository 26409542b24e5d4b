"""Writes one log line per call, with its final code and total time."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from time import perf_counter

import grpc
import structlog

from server.observability.logging import request_id
from server.rpc.call import Call, Failure, Outcome, Proceed, Stream

log = structlog.get_logger()
_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
_SERVER_ERRORS = {
    code.value[0] for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
}


async def log_calls(call: Call, proceed: Proceed) -> Outcome:
    """Log the end of the call. Lines logged inside it carry its request id."""
    request_id.set(call.request_id)
    started = perf_counter()
    try:
        outcome = await proceed(call)
    except Failure as failure:
        _write(call, started, failure.code, failure.reason)
        raise
    except asyncio.CancelledError:
        _write(call, started, grpc.StatusCode.CANCELLED.value[0])
        raise
    if isinstance(outcome, bytes):
        _write(call, started, 0)
        return outcome
    return _log_stream(call, started, outcome)


async def _log_stream(call: Call, started: float, messages: Stream) -> Stream:
    code, reason, sent = grpc.StatusCode.CANCELLED.value[0], "", 0
    try:
        async with aclosing(messages):
            async for message in messages:
                sent += 1
                yield message
                # Each message may be read by another task, with its own context.
                request_id.set(call.request_id)
        code = 0
    except Failure as failure:
        code, reason = failure.code, failure.reason
        raise
    finally:
        request_id.set(call.request_id)
        _write(call, started, code, reason, sent)


def _write(
    call: Call, started: float, code: int, reason: str = "", sent: int | None = None
) -> None:
    fields: dict[str, object] = {
        "method": call.method.path,
        "code": _NAMES[code],
        "ms": round((perf_counter() - started) * 1000, 3),
        "caller": call.caller.subject,
        "address": call.address,
    }
    if call.caller.certificate:
        fields["certificate"] = call.caller.certificate
    if reason:
        fields["reason"] = reason
    if sent is not None:
        fields["sent"] = sent
    if call.method.policy.audit:
        fields["audit"] = call.method.policy.audit
    if code in _SERVER_ERRORS:
        log.error("call", **fields)
    else:
        log.info("call", **fields)
