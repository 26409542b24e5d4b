"""Records the spans of a test in memory, as one process of the service records them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.observability.tracing.sdk import recording
from server.observability.tracing.tracing import Tracing

Spans = Sequence[ReadableSpan]


@dataclass(frozen=True, slots=True)
class Recorder:
    """The tracing of a process, and the spans that have ended."""

    tracing: Tracing
    exporter: InMemorySpanExporter

    def take(self) -> Spans:
        """Return the spans in the order in which they ended, and forget them."""
        spans = self.exporter.get_finished_spans()
        self.exporter.clear()
        return spans


@asynccontextmanager
async def recorded_spans(sample_ratio: float = 1.0) -> AsyncIterator[Recorder]:
    """Record spans while the block runs."""
    exporter = InMemorySpanExporter()
    async with recording(SimpleSpanProcessor(exporter), sample_ratio) as tracing:
        yield Recorder(tracing, exporter)


def trace_of(span: ReadableSpan) -> str:
    """Return the trace id in hexadecimal."""
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def parent_of(span: ReadableSpan) -> str:
    """Return the span id of the parent in hexadecimal; "" if there is none."""
    return f"{span.parent.span_id:016x}" if span.parent else ""


def named(spans: Spans, name: str) -> ReadableSpan:
    """Return the span with a name, of which there must be one."""
    (span,) = (span for span in spans if span.name == name)
    return span


def children(spans: Spans, parent: ReadableSpan) -> Spans:
    """Return the spans below a span, without those below them."""
    assert parent.context is not None
    name = f"{parent.context.span_id:016x}"
    return [span for span in spans if parent_of(span) == name]


def values(span: ReadableSpan) -> dict[str, object]:
    """Return the attributes."""
    return dict(span.attributes or {})
