"""Records one span per call, on every transport."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import grpc
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    get_current_span,
    set_span_in_context,
)

from server.observability.metrics.calls import CODES
from server.observability.tracing.attributes import (
    ERROR_TYPE,
    RPC_METHOD,
    RPC_STATUS_CODE,
    RPC_SYSTEM,
)
from server.observability.tracing.tracing import Tracing
from server.rpc.call import (
    Call,
    Failure,
    Interceptor,
    Method,
    Outcome,
    Proceed,
    Stream,
)

_CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]
_UNKNOWN: int = grpc.StatusCode.UNKNOWN.value[0]  # what gRPC makes of an exception
# The other codes are the client's errors (semantic conventions of gRPC servers).
_SERVER_ERRORS = frozenset(
    code.value[0]
    for code in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
)


def trace_calls(method: Method, tracing: Tracing | None) -> Interceptor | None:
    """Return the interceptor that records the calls of one RPC; None without traces."""
    if tracing is None:
        return None
    attributes = {RPC_SYSTEM: "grpc", RPC_METHOD: method.name}

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        span = tracing.tracer.start_span(
            method.name, _parent(call, tracing), SpanKind.SERVER, attributes
        )
        context = set_span_in_context(span)
        token = attach(context)
        try:
            outcome = await proceed(call)
            if not isinstance(outcome, bytes):
                return _traced(span, context, outcome)
            _end(span)
        except BaseException as error:
            _end(span, error)
            raise
        finally:
            detach(token)
        return outcome

    return intercept


def _parent(call: Call, tracing: Tracing) -> Context | None:
    """Return the parent's context; None, the current one, if the edge has a span."""
    if get_current_span().get_span_context().is_valid:
        return None
    return tracing.remote_parent(call.metadata, call.trusted)


async def _traced(span: Span, context: Context, messages: Stream) -> Stream:
    """Keep the span current while a message is produced; end it with the stream.

    Each message may be read by another task, with its own context.
    """
    try:
        async with aclosing(_within(context, messages)) as traced:
            async for message in traced:
                yield message
    except BaseException as error:  # GeneratorExit: the client has left
        _end(span, error)
        raise
    _end(span)


async def _within(context: Context, messages: Stream) -> Stream:
    """Produce every message, and close the stream, in the context."""
    try:
        while True:
            token = attach(context)
            try:
                message = await anext(messages)
            except StopAsyncIteration:
                return
            finally:
                detach(token)
            yield message
    finally:
        token = attach(context)
        try:
            await messages.aclose()
        finally:
            detach(token)


def _end(span: Span, error: BaseException | None = None) -> None:
    """End the span of a call. The text of an error is in the log, not in the span."""
    code = 0
    if isinstance(error, Failure):
        code = error.code
    elif isinstance(error, asyncio.CancelledError | GeneratorExit):
        code = _CANCELLED
    elif error is not None:
        code = _UNKNOWN
    name = CODES[code]
    span.set_attribute(RPC_STATUS_CODE, name)
    if code in _SERVER_ERRORS:
        span.set_attribute(ERROR_TYPE, name)
        span.set_status(StatusCode.ERROR)
    span.end()
