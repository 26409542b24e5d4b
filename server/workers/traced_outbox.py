"""Spans of outbox deliveries.

A delivery is a trace of its own. A link to the call that wrote the entry would need a
column in the outbox; the log and the entry's id connect them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from server.domain.outbox.entries import Entry
from server.observability.tracing.attributes import (
    ERROR_TYPE,
    OUTBOX_ENTRY,
    OUTBOX_KIND,
)

Route = Callable[[Entry], Awaitable[bool]]


def trace_deliveries(route: Route, tracer: Tracer) -> Route:
    """Return `route` with a span for each delivery."""

    async def traced(entry: Entry) -> bool:
        with tracer.start_as_current_span(
            f"deliver {entry.kind}",
            context=Context(),
            kind=SpanKind.CONSUMER,
            attributes={OUTBOX_KIND: entry.kind, OUTBOX_ENTRY: entry.id},
            record_exception=False,  # its text may contain an address
            set_status_on_exception=False,
        ) as span:
            try:
                return await route(entry)
            except Exception as error:
                span.set_status(StatusCode.ERROR)
                span.set_attribute(ERROR_TYPE, type(error).__qualname__)
                raise

    return traced
