"""The check of Redis: a server, a cluster, or the primary that Sentinels name."""

from __future__ import annotations

from collections.abc import Mapping

from redis.exceptions import RedisError

from server.cli.monitoring.findings import Finding
from server.store.redis.redis_client import redis_client
from server.store.redis.redis_url import Mode, parse_redis_url

_ADVICE = (
    "start Redis, or correct REDIS_URL; until then, each process applies the "
    "rate limits separately"
)


async def check_redis(url: str, displayed: str) -> Finding:
    """Check that every node answers; `displayed` is the URL without secrets."""
    if not url:
        advice = "set REDIS_URL, or run academy up, which starts a Valkey server"
        return Finding("redis", False, "REDIS_URL is not set", advice)
    address = parse_redis_url(url)
    client = redis_client(url)
    try:
        outcomes = await client.ping_nodes()
    except (RedisError, OSError) as error:
        outcomes = {"the nodes": error}
    finally:
        await client.aclose()
    failures = {name: error for name, error in outcomes.items() if error}
    if address.mode is Mode.SERVER:
        result = _describe_server(failures)
    else:
        result = _describe_nodes(address.mode, len(outcomes), failures)
    advice = _ADVICE if failures else ""
    return Finding("redis", not failures, f"{displayed}: {result}", advice)


def _describe_server(failures: Mapping[str, Exception]) -> str:
    for error in failures.values():
        return f"connection or authentication failed ({type(error).__name__})"
    return "responds"


def _describe_nodes(mode: Mode, count: int, failures: Mapping[str, Exception]) -> str:
    title = {Mode.CLUSTER: "cluster", Mode.SENTINEL: "primary named by Sentinels"}[mode]
    if not failures:
        return f"{title}, all nodes respond ({count})"
    names = (f"{name} ({type(error).__name__})" for name, error in failures.items())
    return f"{title}, no valid response from {', '.join(names)}"
