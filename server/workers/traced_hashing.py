"""TracedHashing: spans of the jobs of a hashing pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from opentelemetry.trace import Span, Tracer

from server.domain.credentials.passwords import JobPool
from server.observability.tracing.attributes import HASHING_JOBS
from server.observability.tracing.stores import StoreTracer

Result = TypeVar("Result")


class TracedHashing:
    """A pool whose jobs have a span. The event `started` ends the wait in the queue."""

    def __init__(self, pool: JobPool, tracer: Tracer) -> None:
        self._pool = pool
        self._tracer = StoreTracer(tracer)
        self.reserved = pool.reserved

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run the job of a log-in. Raises Overloaded."""
        with self._tracer.start_as_current_span("hash password") as span:
            return await self._pool.run(_noting_start(span, work))

    async def run_all(self, works: Iterable[Callable[[], Result]]) -> list[Result]:
        """Run the jobs of a batch, after those of log-ins. Raises Overloaded."""
        jobs = [*works]
        attributes = {HASHING_JOBS: len(jobs)}
        with self._tracer.start_as_current_span(
            "hash passwords", attributes=attributes
        ):
            return await self._pool.run_all(jobs)


def _noting_start(span: Span, work: Callable[[], Result]) -> Callable[[], Result]:
    def run() -> Result:
        span.add_event("started")  # from the pool's thread; spans are thread-safe
        return work()

    return run
