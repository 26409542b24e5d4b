"""Spans of HTTP requests, for the edge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from opentelemetry.trace import (
    SpanKind,
    StatusCode,
    get_current_span,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from edge.config import EdgeSettings
from edge.http.trusted_proxies import TrustedProxies
from edge.observation import METHODS, OTHER, App, Observe
from server.observability.tracing.attributes import (
    ERROR_TYPE,
    HTTP_METHOD,
    HTTP_ROUTE,
    HTTP_STATUS_CODE,
    URL_SCHEME,
)
from server.observability.tracing.tracing import TRACEPARENT, TRACESTATE, Tracing

_HEADERS = {name.encode(): name for name in (TRACEPARENT, TRACESTATE)}
_propagator = TraceContextTextMapPropagator()


def trace_edge(
    settings: EdgeSettings, tracing: Tracing | None, proxies: TrustedProxies
) -> EdgeSettings:
    """Return settings with which requests are traced; unchanged without traces."""
    if tracing is None:
        return settings
    traced = EdgeTracing(tracing, proxies)
    return replace(
        settings,
        middleware=traced.middleware,
        observe_request=traced.observing(settings.observe_request),
    )


@dataclass(frozen=True, slots=True)
class EdgeTracing:
    """Records one span per request, with values that no client chooses.

    Paths and queries are left out: they contain user ids and the tokens of links.
    """

    tracing: Tracing
    proxies: TrustedProxies

    def middleware(self, app: App) -> App:
        """Return an application that runs each request in a span.

        The trace headers that `app` receives name this span.
        """

        async def traced(scope: Any, receive: Any, send: Any) -> None:
            method = scope["method"] if scope["method"] in METHODS else OTHER
            client = scope.get("client")
            trusted = client is not None and self.proxies.covers(client[0])
            span = self.tracing.tracer.start_span(
                _name(method),
                self.tracing.remote_parent(_trace_headers(scope), trusted),
                SpanKind.SERVER,
                {HTTP_METHOD: method, URL_SCHEME: scope["scheme"]},
            )
            with use_span(
                span,
                end_on_exit=True,
                record_exception=False,
                set_status_on_exception=False,
            ):
                await app(scope | {"headers": _own_headers(scope)}, receive, send)

        return traced

    def observing(self, observe: Observe | None) -> Observe:
        """Return an observer that also completes the current span."""

        def observe_request(
            method: str, route: str, status: int, seconds: float
        ) -> None:
            if observe:
                observe(method, route, status, seconds)
            span = get_current_span()
            if route != OTHER:
                span.update_name(f"{_name(method)} {route}")
                span.set_attribute(HTTP_ROUTE, route)
            if status:
                span.set_attribute(HTTP_STATUS_CODE, status)
            if status >= 500:
                span.set_attribute(ERROR_TYPE, str(status))
                span.set_status(StatusCode.ERROR)

        return observe_request


def _name(method: str) -> str:
    return "HTTP" if method == OTHER else method


def _trace_headers(scope: Any) -> dict[str, str]:
    """Return the trace headers; several tracestate lines are one list."""
    headers: dict[str, str] = {}
    for key, value in scope["headers"]:
        if name := _HEADERS.get(key):
            text = value.decode("latin-1")
            headers[name] = f"{headers[name]},{text}" if name in headers else text
    return headers


def _own_headers(scope: Any) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request with the current span in the trace headers."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    own = [(name.encode(), value.encode()) for name, value in carrier.items()]
    return [*(header for header in scope["headers"] if header[0] not in _HEADERS), *own]
