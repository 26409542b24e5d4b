"""A circuit breaker: while a store does not answer, callers are refused at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()
PROBE_INTERVAL_SECONDS = 0.3


class CircuitBreaker:
    """Opens after a failure; a background task then probes the store until it answers.

    The states are those of https://martinfowler.com/bliki/CircuitBreaker.html; no call
    is used as a probe. Intervals have jitter, so that many processes do not reconnect
    at the same moment.
    """

    def __init__(
        self,
        store: str,
        probe: Callable[[], Awaitable[object]],
        interval: float = PROBE_INTERVAL_SECONDS,
    ) -> None:
        self._store = store
        self._probe = probe
        self._interval = interval
        self._probing: asyncio.Task[None] | None = None
        self.cause: Exception | None = None

    @property
    def is_open(self) -> bool:
        """Whether the store did not answer when it was last tried."""
        return self.cause is not None

    def record_failure(self, error: Exception) -> None:
        """Open, or stay open."""
        if self.cause is None:
            log.warning("store does not answer", store=self._store, cause=repr(error))
        self.cause = error
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe_until_answered())

    async def _probe_until_answered(self) -> None:
        while self.cause is not None:
            await asyncio.sleep(self._interval * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            try:
                await self._probe()
            except Exception as error:
                self.cause = error
            else:
                self.cause = None
                log.info("store answers again", store=self._store)

    async def close(self) -> None:
        """Stop probing."""
        if self._probing:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
