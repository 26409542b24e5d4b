"""The ids of the active span, for log lines."""

from __future__ import annotations

from opentelemetry.trace import format_span_id, format_trace_id, get_current_span
from structlog.typing import EventDict


def add_trace(_logger: object, _level: str, event: EventDict) -> EventDict:
    """Add the trace id and the span id to a line that is logged during a trace."""
    context = get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = format_trace_id(context.trace_id)
        event["span_id"] = format_span_id(context.span_id)
    return event
