"""Opens Postgres: the primary alone, or with a replica for stale reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.composition.feature import Feature
from server.config import Pooler, Settings, text_of
from server.observability.metrics import definitions
from server.observability.metrics.exposition import number
from server.observability.metrics.process import ProcessMetrics
from server.store.connections.connect import Database
from server.store.redis.redis_client import RedisClient
from server.store.replica.replica import COMPARE_INTERVAL, Replica
from server.store.replica.replicated_database import ReplicatedDatabase
from server.store.replica.write_marks import WriteMarks
from server.workers.poller import Poller


def open_databases(settings: Settings, redis: RedisClient) -> Database:
    """Return the database of DATABASE_URL, which reads DATABASE_READ_URL, too."""
    options: dict[str, Any] = {
        "transaction_pooler": settings.database_pooler is Pooler.TRANSACTION,
        "write_epochs": settings.database_write_epochs,
        "pool_size": settings.database_pool_size,
        "pool_timeout": settings.database_pool_timeout,
        "statement_timeout": settings.statement_timeout,
    }
    url, replica_url = settings.database_url, settings.database_read_url
    if replica_url is None:
        return Database(text_of(url), **options)
    max_lag = settings.database_read_max_lag
    return ReplicatedDatabase(
        text_of(url),
        text_of(replica_url),
        WriteMarks(redis, max_lag),
        max_lag,
        **options,
    )


def replica_feature(database: Database, metrics: ProcessMetrics) -> Feature:
    """Return the task that compares the replica, if there is one, and its metrics."""
    if not isinstance(database, ReplicatedDatabase):
        return Feature()
    replica = database.replica
    metrics.degraded["replica"] = lambda: replica.is_degraded
    metrics.edge.others.append(lambda: _lag(replica))
    return Feature(tasks=(Poller("replica", replica.refresh, COMPARE_INTERVAL),))


def _lag(replica: Replica) -> Iterator[str]:
    if replica.lag is not None:
        yield number(definitions.REPLICA_LAG, replica.lag)
