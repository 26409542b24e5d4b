"""Traces and log lines; a collector that is slow or away costs calls nothing."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import use_span

from server.composition.tracing import open_tracing
from server.config import load
from server.observability.tracing.logs import add_trace
from server.observability.tracing.sdk import (
    FLUSH_TIMEOUT_SECONDS,
    otlp_processor,
    recording,
)
from tests.collector import collecting
from tests.spans import recorded_spans, trace_of

SDK_TIMEOUT_SECONDS = 30.0  # that the SDK waits at its end by default


async def test_log_line_has_ids_of_active_span() -> None:
    async with recorded_spans() as recorder:
        span = recorder.tracing.tracer.start_span("call")
        with use_span(span, end_on_exit=True):
            line = add_trace(None, "info", {"event": "x", "request_id": "r"})
    (ended,) = recorder.take()
    assert ended.context is not None
    assert line == {
        "event": "x",
        "request_id": "r",
        "trace_id": trace_of(ended),
        "span_id": f"{ended.context.span_id:016x}",
    }
    assert add_trace(None, "info", {"event": "x"}) == {"event": "x"}


async def test_spans_are_exported_to_endpoint_before_process_ends() -> None:
    async with collecting() as collector:
        settings = load(otel_exporter_otlp_endpoint=f"{collector.url}/otlp/")
        async with open_tracing(settings) as tracing:
            assert tracing is not None
            tracing.tracer.start_span("call").end()
        assert collector.paths == {"/otlp/v1/traces"}
        (span,) = collector.spans
    assert span.name == "call"
    assert 'string_value: "blatam-academy"' in collector.text


async def test_traces_are_off_by_default() -> None:
    async with open_tracing(load()) as tracing:
        assert tracing is None


async def test_silent_collector_delays_neither_calls_nor_end_of_process() -> None:
    """Spans beyond the bounded queue are dropped; none is waited for."""
    async with collecting(silent=True) as collector:
        processor = otlp_processor(collector.url)
        assert isinstance(processor, BatchSpanProcessor)
        async with recording(processor, 1.0) as tracing:
            for _ in range(5_000):  # more than the queue holds
                tracing.tracer.start_span("call").end()
            await collector.connected.wait()
            begin = monotonic()
        seconds = monotonic() - begin
        assert FLUSH_TIMEOUT_SECONDS <= seconds < SDK_TIMEOUT_SECONDS / 2
        assert len(processor._batch_processor._queue) <= 2_048


async def test_absent_collector_is_logged_and_costs_no_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with recording(otlp_processor("http://127.0.0.1:9"), 1.0) as tracing:
        tracing.tracer.start_span("call").end()
        await asyncio.sleep(0)
    assert any("exporting spans batch" in text for text in caplog.messages)
