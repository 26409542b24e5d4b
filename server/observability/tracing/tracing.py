"""Tracing: the tracer of a process, and which remote parents its spans have."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
_propagator = TraceContextTextMapPropagator()
_random = random.Random()  # noqa: S311  # sampling needs no secret


@dataclass(frozen=True, slots=True)
class Tracing:
    """Starts spans. Exists only where traces are on.

    `sample_ratio` is the share of traces that this process records, if no trusted
    peer has decided it.
    """

    tracer: Tracer
    sample_ratio: float

    def remote_parent(
        self, headers: Mapping[str, str | bytes], trusted: bool
    ) -> Context:
        """Return the context of the span that a request's headers name (W3C).

        Every peer may name the trace. Only a trusted one decides whether it is
        recorded, and may send a tracestate: otherwise any client could cause the cost
        of a recorded trace. The decision does not depend on the trace id, because
        the client chooses it.
        """
        names = (TRACEPARENT, TRACESTATE) if trusted else (TRACEPARENT,)
        carrier = {name: str(headers[name]) for name in names if name in headers}
        context = _propagator.extract(carrier, Context())
        remote = get_current_span(context).get_span_context()
        if trusted or not remote.is_valid:
            return context
        sampled = _random.random() < self.sample_ratio
        flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        parent = SpanContext(remote.trace_id, remote.span_id, True, flags)
        return set_span_in_context(NonRecordingSpan(parent), Context())
