"""The OpenTelemetry SDK: exports spans, and instruments asyncpg and redis."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from threading import Thread

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from server.observability.tracing.stores import StoreTracerProvider
from server.observability.tracing.tracing import Tracing

DISTRIBUTION = "blatam-academy"
TRACES_PATH = "/v1/traces"  # of OTLP over HTTP, below the endpoint
FLUSH_TIMEOUT_SECONDS = 2.0  # for the spans that are left when the process stops
MAX_ATTRIBUTE_LENGTH = 4096  # characters, of the longest statements
# The stable names of the conventions: db.query.text instead of db.statement.
_OPT_IN = ("OTEL_SEMCONV_STABILITY_OPT_IN", "database,http")


def otlp_processor(endpoint: str) -> SpanProcessor:
    """Return what exports spans from a thread of its own, by OTLP over HTTP.

    Its queue is bounded: spans that a slow or absent collector does not take are
    dropped, and no call waits for them.
    """
    exporter = OTLPSpanExporter(f"{endpoint.removesuffix('/')}{TRACES_PATH}")
    return BatchSpanProcessor(exporter)


@asynccontextmanager
async def recording(
    processor: SpanProcessor, sample_ratio: float
) -> AsyncIterator[Tracing]:
    """Record traces while the block runs, those of SQL and Redis included.

    When it ends, the spans that are left have FLUSH_TIMEOUT_SECONDS to be exported.
    """
    os.environ.setdefault(*_OPT_IN)  # read by the instrumentations
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        resource=_resource(),
        span_limits=SpanLimits(max_span_attribute_length=MAX_ATTRIBUTE_LENGTH),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(processor)
    asyncpg = AsyncPGInstrumentor()  # type: ignore[no-untyped-call]
    instrumentations = (asyncpg, RedisInstrumentor())
    for instrumentation in instrumentations:
        instrumentation.instrument(tracer_provider=StoreTracerProvider(provider))
    try:
        yield Tracing(provider.get_tracer(DISTRIBUTION), sample_ratio)
    finally:
        for instrumentation in instrumentations:
            instrumentation.uninstrument()
        # The SDK would wait 30 s for a collector that does not respond.
        flush = Thread(target=provider.shutdown, name="flush spans", daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, FLUSH_TIMEOUT_SECONDS)


def _resource() -> Resource:
    """Return what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, or defaults."""
    resource = Resource.create({SERVICE_VERSION: version(DISTRIBUTION)})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: DISTRIBUTION}))
    return resource
