"""Counts calls for the metrics: started, handled by code, duration, messages."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from time import perf_counter

import grpc

from server.observability.metrics.calls import CallCounts, CallLabels, CallMetrics
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
_RATE_LIMITED = "RATE_LIMITED"


def call_labels(method: Method) -> CallLabels:
    """Return the labels of a method."""
    service, _, name = method.name.partition("/")
    return CallLabels("server_stream" if method.streams else "unary", service, name)


def count_calls(method: Method, metrics: CallMetrics) -> Interceptor:
    """Return the interceptor that counts the calls of one RPC."""
    by_transport = metrics.of_method(call_labels(method))

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        counts = by_transport[call.transport]
        started = perf_counter()
        counts.start()
        try:
            outcome = await proceed(call)
        except BaseException as error:
            _end(counts, started, error)
            raise
        if not isinstance(outcome, bytes):
            return _counted(counts, started, outcome)
        counts.send()
        counts.end(0, perf_counter() - started)
        return outcome

    return intercept


async def _counted(counts: CallCounts, started: float, messages: Stream) -> Stream:
    counts.open_stream()
    try:
        async with aclosing(messages):
            async for message in messages:
                counts.send()
                yield message
    except BaseException as error:  # GeneratorExit: the client has left
        _end(counts, started, error)
        raise
    else:
        counts.end(0, perf_counter() - started)
    finally:
        counts.close_stream()


def _end(counts: CallCounts, started: float, error: BaseException) -> None:
    """Count a call that an exception ended."""
    code, limited = _UNKNOWN, False
    if isinstance(error, Failure):
        code, limited = error.code, error.reason == _RATE_LIMITED
    elif isinstance(error, asyncio.CancelledError | GeneratorExit):
        code = _CANCELLED
    counts.end(code, perf_counter() - started, rate_limited=limited)
