"""Records the spans of a test in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.observability.tracing.sdk import recording
from server.observability.tracing.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Recorder:
    """The tracing of a process, and the spans that have ended."""

    tracing: Tracing
    exporter: InMemorySpanExporter

    def ended(self) -> list[ReadableSpan]:
        """Return the spans in the order in which they ended, and forget them."""
        spans = list(self.exporter.get_finished_spans())
        self.exporter.clear()
        return spans


@asynccontextmanager
async def recorded_spans(sample_ratio: float = 1.0) -> AsyncIterator[Recorder]:
    exporter = InMemorySpanExporter()
    async with recording(SimpleSpanProcessor(exporter), sample_ratio) as tracing:
        yield Recorder(tracing, exporter)


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id


def only(spans: list[ReadableSpan], name: str) -> ReadableSpan:
    """Return the span with a name, of which there must be one."""
    (span,) = (span for span in spans if span.name == name)
    return span


def children(spans: list[ReadableSpan], parent: ReadableSpan) -> list[ReadableSpan]:
    return [s for s in spans if s.parent and s.parent.span_id == span_id(parent)]


def text_of(spans: list[ReadableSpan]) -> str:
    """Return everything that an exporter would send."""
    return json.dumps([json.loads(span.to_json()) for span in spans])
