"""The check of Redis: a server, a cluster, or the primary that Sentinels name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from redis.asyncio import SSLConnection
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from server.cli.monitoring.findings import Finding
from server.store.redis.redis_client import redis_client
from server.store.redis.redis_url import (
    SENTINEL_PORT,
    Mode,
    RedisUrl,
    parse_redis_url,
)
from server.store.redis.sentinel import UnknownService

_START = "start Redis, or correct REDIS_URL"
_CONSEQUENCE = "until then, each process applies the rate limits separately"

_UNKNOWN_COMMAND = re.compile("unknown command", re.IGNORECASE)
# what the server replies, by the mode of the URL
_MISTAKES = (
    (
        Mode.SERVER,
        _UNKNOWN_COMMAND,
        "it does not know SET, as a Sentinel: use "
        "redis+sentinel://HOST:26379/SERVICE, or the port of Redis",
    ),
    (
        Mode.SERVER,
        re.compile("read.?only replica"),
        "it is a replica: use the address of its primary",
    ),
    (
        Mode.SERVER,
        re.compile("^(MOVED )?[0-9]+ .+:[0-9]+$|CROSSSLOT"),
        "it is a node of a cluster: use redis+cluster://",
    ),
    (
        Mode.CLUSTER,
        re.compile("cluster support disabled"),
        "it is not a cluster: use redis://",
    ),
    (
        Mode.CLUSTER,
        re.compile("SELECT is not allowed|DB index is out of range"),
        "a cluster has only database 0 unless it is configured for more: remove /{db}",
    ),
    (
        Mode.SENTINEL,
        _UNKNOWN_COMMAND,
        f"it is not a Sentinel, whose default port is {SENTINEL_PORT}: correct the "
        "port, or use redis://",
    ),
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
    advice = f"{_cause(address, failures)}; {_CONSEQUENCE}" if failures else ""
    return Finding("redis", not failures, f"{displayed}: {result}", advice)


def _cause(address: RedisUrl, failures: Mapping[str, Exception]) -> str:
    """Return the mistake in REDIS_URL that explains a failure, or the usual advice."""
    for error in failures.values():
        if cause := _mistake(address, error):
            return cause
    return _START


def _mistake(address: RedisUrl, error: Exception) -> str:
    """Return what the URL should be, "" if the error does not tell."""
    text = str(error)
    if isinstance(error, UnknownService):
        return f"the Sentinels know no service {address.service}: correct its name"
    for mode, pattern, cause in _MISTAKES:
        if mode is address.mode and pattern.search(text):
            return cause.format(db=address.options.get("db"))
    if address.options.get("connection_class") is SSLConnection and _may_be_plaintext(
        error
    ):
        return f"{_START}; does it serve TLS at this port?"
    return ""


def _may_be_plaintext(error: Exception) -> bool:
    """Return whether there was a server, as it seems, but no TLS session.

    A server that expects no TLS waits for more, or closes the connection.
    """
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return True
    if not isinstance(error, RedisConnectionError):
        return False
    return not isinstance(error, MasterNotFoundError | AuthenticationError) and (
        "connecting to" not in str(error) or "[SSL: WRONG_VERSION" in str(error)
    )


def _describe_server(failures: Mapping[str, Exception]) -> str:
    for error in failures.values():
        return f"no valid response ({type(error).__name__})"
    return "responds"


def _describe_nodes(mode: Mode, count: int, failures: Mapping[str, Exception]) -> str:
    title = {Mode.CLUSTER: "cluster", Mode.SENTINEL: "primary named by Sentinels"}[mode]
    if not failures:
        return f"{title}, all nodes respond ({count})"
    names = (f"{name} ({type(error).__name__})" for name, error in failures.items())
    return f"{title}, no valid response from {', '.join(names)}"
