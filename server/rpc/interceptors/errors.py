"""The only place that creates a status: turns exceptions into a Failure.

An AcademyError keeps its message and reason. Any other exception is "internal error"
to the caller, and its cause is in the log under the request id (ASVS 16.5.1).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from time import monotonic

import structlog
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from server.domain.deadlines import call_deadline
from server.domain.errors import AcademyError, DeadlineExceeded, ErrorKind
from server.rpc.call import (
    Call,
    CallCoroutine,
    Failure,
    Interceptor,
    Outcome,
    Proceed,
    Stream,
)
from server.rpc.deadlines import Deadline, DeadlineTimer

log = structlog.get_logger()
# Runs a call to its end, or to where it first waits.
Start = Callable[[CallCoroutine], Outcome | Awaitable[Outcome]]
DOMAIN = "blatam.academy"
_CODES: dict[ErrorKind, int] = {
    kind: code_pb2.Code.Value(kind.name) for kind in ErrorKind
}


def map_errors(timer: DeadlineTimer, start: Start) -> Interceptor:
    """Return the interceptor that maps errors and ends calls at their deadline.

    `start` runs a call until it first waits: only then can its deadline pass.
    """

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        due = math.inf
        if call.timeout is not None:
            due = monotonic() + call.timeout
        call_deadline.set(due)
        deadline = None
        try:
            if call.timeout is not None and call.timeout <= 0:
                raise DeadlineExceeded  # it passed before the call arrived
            outcome = start(proceed(call))
            if not isinstance(outcome, bytes) and isinstance(outcome, Awaitable):
                deadline = Deadline(timer, due)
                with deadline:
                    outcome = await outcome
        except Exception as error:
            raise _ended(call, error, deadline) from error
        if isinstance(outcome, bytes):
            return outcome
        return _streamed(call, outcome, timer, due)

    return intercept


async def _streamed(
    call: Call, messages: Stream, timer: DeadlineTimer, due: float
) -> Stream:
    """Apply the same to a stream: each message is due before the call's deadline.

    A deadline spans no `yield`: the time that the reader takes does not count.
    """
    async with aclosing(messages):
        while True:
            deadline = Deadline(timer, due)
            try:
                with deadline:
                    message = await anext(messages)
            except StopAsyncIteration:
                return
            except Exception as error:
                raise _ended(call, error, deadline) from error
            yield message


def _ended(call: Call, error: Exception, deadline: Deadline | None) -> Failure:
    expired = isinstance(error, TimeoutError) and deadline and deadline.expired
    return _failure(call, DeadlineExceeded() if expired else error)


def _failure(call: Call, error: Exception) -> Failure:
    if not isinstance(error, AcademyError):
        log.error("unexpected", exc_info=error)
        return _build_failure(call, code_pb2.INTERNAL, "internal error", "INTERNAL", [])
    if error.__cause__ or hasattr(error, "__notes__"):
        notes = getattr(error, "__notes__", [])
        cause = repr(error.__cause__) if error.__cause__ else None
        log.info("refused", reason=error.reason, notes=notes, cause=cause)
    code = _CODES[error.kind]
    return _build_failure(
        call, code, str(error), error.reason, _details(error), error.metadata
    )


def _build_failure(
    call: Call,
    code: int,
    message: str,
    reason: str,
    details: list[Message],
    metadata: Mapping[str, str] | None = None,
) -> Failure:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    request = error_details_pb2.RequestInfo(request_id=call.request_id)
    status = status_pb2.Status(code=code, message=message)
    for detail in (info, *details, request):
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return Failure(code, message, status.SerializeToString(), reason)


def _details(error: AcademyError) -> list[Message]:
    details: list[Message] = []
    if error.violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(
                field=v.field, description=v.description, reason=v.rule
            )
            for v in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromTimedelta(error.retry_after)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.reason == "RATE_LIMITED":
        violation = error_details_pb2.QuotaFailure.Violation(
            subject=_quota(error), description=str(error)
        )
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    return details


def _quota(error: AcademyError) -> str:
    """Return the quota's name: `limit` calls in `per_seconds` seconds."""
    return f"{error.metadata['limit']}/{error.metadata['per_seconds']}s"
