"""Resources that every feature uses: connections, secrets, pools and codecs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from server.composition.tracing import open_tracing
from server.config import Pooler, Settings, require, text_of
from server.domain.clock import Clock, system_clock
from server.domain.credentials.passwords import PasswordHasher
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.secret_key import SecretKey
from server.domain.limits import SlidingWindows
from server.domain.members.unsubscriptions import UnsubscribeTokens
from server.domain.paging import PageTokens
from server.observability.metrics.calls import CallMetrics
from server.observability.metrics.process import ProcessMetrics
from server.observability.tracing.tracing import Tracing
from server.rpc import contract
from server.rpc.interceptors.logging import call_labels
from server.store.buckets import RedisBuckets
from server.store.connections.connect import Database
from server.store.connections.guarded_redis import GuardedRedis, redis_client
from server.store.credentials.revocations import RevocationFeed
from server.workers.hashing import HashingPool
from server.workers.traced_hashing import TracedHashing


@dataclass(frozen=True, slots=True)
class Resources:
    """Connections, secrets and pools of one process."""

    settings: Settings
    clock: Clock
    secret: SecretKey
    database: Database
    redis: GuardedRedis
    limiter: RedisBuckets
    hashing: HashingPool
    hasher: PasswordHasher
    revocations: Revocations
    feed: RevocationFeed
    metrics: ProcessMetrics
    tracing: Tracing | None


@asynccontextmanager
async def open_resources(
    settings: Settings,
    call_counts: Path | None = None,
    tracing: Tracing | None = None,
) -> AsyncIterator[Resources]:
    """Open the resources; close them in reverse order when the block ends.

    `call_counts` is a file that keeps the counts of calls beyond this process. Without
    `tracing`, the settings decide whether traces are recorded.

    Raises ConfigurationError for a setting that is missing.
    """
    require(settings, "database_url", "redis_url", "secret_key")
    async with AsyncExitStack() as stack:
        tracing = tracing or await stack.enter_async_context(open_tracing(settings))
        database = Database(
            text_of(settings.database_url),
            transaction_pooler=settings.database_pooler is Pooler.TRANSACTION,
            write_epochs=settings.database_write_epochs,
            pool_size=settings.database_pool_size,
            pool_timeout=settings.database_pool_timeout,
            statement_timeout=settings.statement_timeout,
        )
        stack.push_async_callback(database.close)
        redis = redis_client(text_of(settings.redis_url))
        stack.push_async_callback(redis.aclose)
        labels = map(call_labels, contract.methods())
        metrics = ProcessMetrics(CallMetrics.of(labels, call_counts))
        pool = HashingPool(on_wait=metrics.hashing_wait.observe)
        stack.callback(pool.close)
        revocations = Revocations(system_clock)
        feed = RevocationFeed(database, redis, revocations, system_clock)
        database.announce = feed.wakeups.publish
        yield Resources(
            settings=settings,
            clock=system_clock,
            secret=SecretKey(
                text_of(settings.secret_key),
                text_of(settings.secret_key_previous) or None,
            ),
            database=database,
            redis=redis,
            limiter=RedisBuckets(redis, SlidingWindows(system_clock)),
            hashing=pool,
            hasher=PasswordHasher(
                TracedHashing(pool, tracing.tracer) if tracing else pool
            ),
            revocations=revocations,
            feed=feed,
            metrics=metrics,
            tracing=tracing,
        )


def page_tokens(resources: Resources) -> PageTokens:
    """Return the codec of page tokens, which all lists share."""
    return PageTokens(resources.secret.mac("page-tokens"))


def unsubscribe_tokens(resources: Resources) -> UnsubscribeTokens:
    """Return the codec of the tokens in unsubscribe links."""
    return UnsubscribeTokens(resources.secret.mac("unsubscribe"))
