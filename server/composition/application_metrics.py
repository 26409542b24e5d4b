"""ApplicationMetrics: what is counted, and what the components show at a scrape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from server.composition.resources import Resources
from server.composition.stores import Stores
from server.observability.metrics import definitions
from server.observability.metrics.exposition import number, numbers, numbers_by, render


@dataclass(frozen=True, slots=True)
class ApplicationMetrics:
    """Renders the metrics of one application. Reading them makes no I/O."""

    resources: Resources
    stores: Stores

    async def render(self) -> bytes:
        """Return the text for Prometheus."""
        return render(self._families())

    def _families(self) -> Iterator[str]:
        yield from self.resources.metrics.families()
        yield from self._database()
        yield from self._hashing()
        yield self._cache()
        yield from self._outbox()
        yield from self._signing_key()
        yield numbers_by(definitions.DEGRADED, self._degraded())

    def _database(self) -> Iterator[str]:
        pool = self.resources.database.statistics
        connections = {"in_use": pool.in_use, "idle": pool.idle}
        yield numbers_by(definitions.POOL_CONNECTIONS, connections)
        yield number(definitions.POOL_WAITING, pool.waiting)
        yield number(definitions.POOL_TIMEOUTS, pool.timeouts)

    def _hashing(self) -> Iterator[str]:
        hashing = self.resources.hashing.statistics
        yield number(definitions.HASHING_QUEUE, hashing.queue_length)
        yield number(definitions.HASHING_REFUSED, hashing.refused)

    def _cache(self) -> str:
        cache = self.stores.users.cache.statistics
        results = [
            (("process", "hit"), cache.process_hits),
            (("process", "miss"), cache.process_misses),
            (("redis", "hit"), cache.redis_hits),
            (("redis", "miss"), cache.redis_misses),
        ]
        return numbers(definitions.CACHE_REQUESTS, results)

    def _outbox(self) -> Iterator[str]:
        backlog = self.stores.outbox.backlog
        if backlog is not None:  # Postgres has answered once
            entries = {"pending": backlog.pending, "dead": backlog.dead}
            yield numbers_by(definitions.OUTBOX_ENTRIES, entries)
            yield number(definitions.OUTBOX_LAG, backlog.age)

    def _signing_key(self) -> Iterator[str]:
        created_at = self.stores.signing_keys.active_created_at
        if created_at is not None:
            age = self.resources.clock() - created_at
            yield number(definitions.SIGNING_KEY_AGE, age.total_seconds())

    def _degraded(self) -> dict[str, bool]:
        others = self.resources.metrics.degraded
        return {
            "postgres": self.resources.database.is_degraded,
            "redis": self.resources.limiter.is_degraded,
            **{name: is_degraded() for name, is_degraded in others.items()},
        }
