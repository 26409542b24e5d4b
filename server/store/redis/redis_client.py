"""The client of REDIS_URL, whatever answers there."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from redis.asyncio import ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from server.store.redis.guarded_redis import TIMEOUT_SECONDS, GuardedRedis
from server.store.redis.redis_cluster import GuardedCluster
from server.store.redis.redis_url import Mode, Node, RedisUrl, parse_redis_url
from server.store.redis.sentinel import GuardedPrimary, Sentinels, primary_pool

# Of connections that no call waits for. At start this process may be busy for a second.
_BACKGROUND_TIMEOUT_SECONDS = 5.0
RedisClient = GuardedRedis | GuardedCluster


def redis_client(url: str) -> RedisClient:
    """Return a client that answers or fails within a tenth of a second.

    What Redis holds may be lost: no call waits for it, no command is retried. Raises
    ValueError for a malformed URL.
    """
    address = parse_redis_url(url)
    if address.mode is Mode.CLUSTER:
        return GuardedCluster(address.nodes, partial(_node_client, address.options))
    if address.mode is Mode.SENTINEL:
        return _primary_client(address)
    return _server_client(address.options)


def _server_client(options: Mapping[str, Any], name: str = "redis") -> GuardedRedis:
    pool, background = (
        ConnectionPool(**options, **limits) for limits in (_LIMITS, _BACKGROUND_LIMITS)
    )
    return GuardedRedis(pool, background, name)


def _node_client(options: Mapping[str, Any], node: Node) -> GuardedRedis:
    host, port = node
    address = {"host": host, "port": port}
    return _server_client({**options, **address}, f"redis {host}:{port}")


def _primary_client(address: RedisUrl) -> GuardedPrimary:
    own = dict(address.sentinel_options)
    own["ssl"] = own.pop("connection_class", None) is SSLConnection
    own |= _LIMITS
    sentinels = Sentinels(address.nodes, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
    pool, background = (
        primary_pool(sentinels, address.service, {**address.options, **limits})
        for limits in (_LIMITS, _BACKGROUND_LIMITS)
    )
    return GuardedPrimary(pool, background, sentinels)


def _limits(timeout: float) -> Mapping[str, Any]:
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }


_LIMITS = _limits(TIMEOUT_SECONDS)
_BACKGROUND_LIMITS = _limits(_BACKGROUND_TIMEOUT_SECONDS)
