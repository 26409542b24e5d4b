"""The tracer of the SQL and Redis instrumentations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    TracerProvider,
    get_current_span,
)
from opentelemetry.util.types import Attributes

from server.observability.tracing.attributes import ERROR_TYPE


class StoreTracerProvider(TracerProvider):
    """Returns a StoreTracer to an instrumentation."""

    def __init__(self, inner: TracerProvider) -> None:
        self._inner = inner

    def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:
        """Return the tracer of an instrumentation."""
        return StoreTracer(self._inner.get_tracer(*args, **kwargs))


class StoreTracer(Tracer):
    """Starts spans of statements and commands inside a recorded span only.

    Pollers run several statements a second and would fill the backend with traces of
    one span. A span has the class of an error but not its text: Postgres puts the
    values of the row into it, such as an e-mail address.
    """

    def __init__(self, inner: Tracer) -> None:
        self._inner = inner

    def start_span(self, name: str, *args: Any, **kwargs: Any) -> Span:
        """Start a span that records no exception."""
        kwargs |= {"record_exception": False, "set_status_on_exception": False}
        return self._inner.start_span(name, *args, **kwargs)

    @contextmanager
    def start_as_current_span(  # type: ignore[override]  # the API's has a type of its own
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
    ) -> Iterator[Span]:
        """Run the block in a new span, with what the instrumentations pass."""
        if not get_current_span().is_recording():
            yield INVALID_SPAN
            return
        with self._inner.start_as_current_span(
            name.rstrip(";"),
            kind=kind,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except Exception as error:
                span.set_status(StatusCode.ERROR)
                span.set_attribute(ERROR_TYPE, type(error).__qualname__)
                raise
