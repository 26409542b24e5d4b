"""A document of a provider: fetched when it is needed, and kept for an hour."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from server.domain.clock import Clock
from server.identity_providers.http_client import RequestFailed, RequestRefused

MAX_AGE = timedelta(hours=1)
MAX_STALE_AGE = timedelta(days=1)  # while the provider does not respond
MIN_RETRY_INTERVAL = timedelta(seconds=5)
MIN_REFRESH_INTERVAL = timedelta(minutes=1)
T = TypeVar("T")


class CachedDocument(Generic[T]):
    """Fetches a document once for all callers that wait for it."""

    def __init__(self, fetch: Callable[[], Awaitable[T]], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = asyncio.Lock()
        self._document: T | None = None
        self._failure: RequestFailed | None = None
        self._fetched_at: datetime | None = None
        self._attempted_at: datetime | None = None

    async def get(self) -> T:
        """Return the document. Raises RequestFailed."""
        if self._document is not None and self._is_younger(MAX_AGE):
            return self._document
        return await self._attempt(MIN_RETRY_INTERVAL)

    async def refresh(self) -> T:
        """Return the document, fetched again if that was a minute ago or more.

        Raises RequestFailed.
        """
        return await self._attempt(MIN_REFRESH_INTERVAL)

    async def _attempt(self, interval: timedelta) -> T:
        async with self._lock:
            now = self._clock()
            if self._attempted_at is None or now - self._attempted_at >= interval:
                self._attempted_at = now
                try:
                    self._document = await self._fetch()
                    self._fetched_at, self._failure = now, None
                except RequestRefused as error:
                    self._failure = RequestFailed(f"status 400 {error}")
                except RequestFailed as error:
                    self._failure = error
            if self._document is not None and self._is_younger(MAX_STALE_AGE):
                return self._document
            raise RequestFailed(*(self._failure or RequestFailed("interrupted")).args)

    def _is_younger(self, age: timedelta) -> bool:
        return self._fetched_at is not None and self._clock() - self._fetched_at < age
