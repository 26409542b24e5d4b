"""A circuit breaker: while a store does not respond, callers are refused at once."""

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
        self.cause = error
        self._start_probing(self._delay())

    def suspect(self) -> None:
        """Probe now, and open if that fails: one failure may be that of one call."""
        self._start_probing(0)

    def _start_probing(self, delay: float) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe_until_answered(delay))

    async def _probe_until_answered(self, delay: float) -> None:
        is_logged = False
        while True:
            await asyncio.sleep(delay)
            try:
                await self._probe()
            except Exception as error:
                self.cause = error
                delay = self._delay()
                if not is_logged:
                    cause = repr(error)
                    log.warning(
                        "store does not respond", store=self._store, cause=cause
                    )
                is_logged = True
            else:
                break
        if is_logged:
            log.info("store responds again", store=self._store)
        self.cause = None

    def _delay(self) -> float:
        return self._interval * random.uniform(0.5, 1.5)  # noqa: S311 - jitter

    async def close(self) -> None:
        """Stop probing."""
        if self._probing:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
