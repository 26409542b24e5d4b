"""Traces of a process: on if OTEL_EXPORTER_OTLP_ENDPOINT is set."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.config import ConfigurationError, Settings
from server.observability.tracing.tracing import Tracing

_PACKAGES_NEEDED = (
    "OTEL_EXPORTER_OTLP_ENDPOINT: traces need the otel extra: "
    "run pip install -r requirements-otel.lock, or unset the setting"
)


def check_tracing(settings: Settings) -> None:
    """Raise ConfigurationError if traces are on and their packages are missing."""
    if not settings.otel_exporter_otlp_endpoint:
        return
    try:
        import server.observability.tracing.sdk  # noqa: F401  # may be missing
    except ModuleNotFoundError as error:
        raise ConfigurationError(_PACKAGES_NEEDED) from error


@asynccontextmanager
async def open_tracing(settings: Settings) -> AsyncIterator[Tracing | None]:
    """Export traces until the block ends; None if they are off.

    Raises ConfigurationError.
    """
    endpoint = settings.otel_exporter_otlp_endpoint
    if not endpoint:
        yield None
        return
    check_tracing(settings)
    from server.observability.tracing import sdk

    processor = sdk.otlp_processor(endpoint)
    async with sdk.recording(processor, settings.otel_traces_sampler_arg) as tracing:
        yield tracing
