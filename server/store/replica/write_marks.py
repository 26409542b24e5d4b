"""WriteMarks: who has written so recently that a replica may not have it yet.

A replica in use has every commit that is older than the greatest lag allowed. So a
caller who has written reads the primary for that long, and whatever they read then
includes what they wrote. The mark is in Redis, because the next call of the caller may
reach another process. Without Redis nobody knows who has written elsewhere: then the
primary is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from server.domain.callers import ANONYMOUS, current_caller

log = structlog.get_logger()
# A mark is sent beside the write, not after it, so that it costs no time: this much of
# its lifetime is for the write. A longer one sends it again.
MARGIN_SECONDS = 1.0


class WriteMarks:
    """The marks of callers; those of this process are kept without Redis, too."""

    def __init__(self, redis: Redis, max_lag: timedelta) -> None:
        self._redis = redis
        self._max_lag = max_lag.total_seconds()
        self._own: dict[str, float] = {}  # when each mark expires, the oldest first
        self._incomplete_until = 0.0  # marks of others may be missing

    @asynccontextmanager
    async def marking(self) -> AsyncIterator[None]:
        """Mark the caller of the present call; the block writes for it.

        The mark lasts from the end of the block, whatever its outcome: a commit may
        have succeeded although its answer was lost.
        """
        caller = current_caller.get()
        if caller == ANONYMOUS:
            yield
            return
        subject = caller.subject
        started_at = _now()
        publishing = asyncio.create_task(self._publish(subject))
        try:
            yield
        finally:
            self._keep(subject)
            await publishing
            if _now() - started_at > MARGIN_SECONDS:
                await self._publish(subject)

    async def is_unmarked(self) -> bool:
        """Return whether the caller of the present call is known not to be marked."""
        caller, now = current_caller.get(), _now()
        if caller == ANONYMOUS or now < self._incomplete_until:
            return False
        if now < self._own.get(caller.subject, 0.0):
            return False
        try:
            return not await self._redis.exists(_key(caller.subject))
        except (RedisError, OSError):
            self._note_loss()
            return False

    async def _publish(self, subject: str) -> None:
        lifetime = timedelta(seconds=self._max_lag + MARGIN_SECONDS)
        try:
            await self._redis.set(_key(subject), b"", px=lifetime)
        except (RedisError, OSError):
            log.debug("write not marked")
            self._note_loss()

    def _keep(self, subject: str) -> None:
        now = _now()
        self._own.pop(subject, None)
        self._own[subject] = now + self._max_lag
        while (oldest := next(iter(self._own))) and self._own[oldest] < now:
            del self._own[oldest]

    def _note_loss(self) -> None:
        """Read the primary until the marks that Redis lost or missed have expired."""
        self._incomplete_until = _now() + self._max_lag + MARGIN_SECONDS


def _key(subject: str) -> str:
    return f"wrote:{subject}"


def _now() -> float:
    return asyncio.get_running_loop().time()
