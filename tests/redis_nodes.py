"""The servers behind a REDIS_URL, for tests that look at their data."""

from contextlib import suppress
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.utils import str_if_bytes

from server.store.redis.cluster_slots import primaries_by_slot
from server.store.redis.redis_url import Mode, Node, RedisUrl, parse_redis_url


def with_database(redis_url: str, number: int) -> str:
    """Return the URL of one of the key spaces; a cluster has several since Valkey 9."""
    return f"{redis_url}{'&' if '?' in redis_url else '?'}db={number}"


def primary_urls(redis_url: str) -> list[str]:
    """Return the URLs of the servers that have the data, each of one server."""
    address = parse_redis_url(redis_url)
    if address.mode is Mode.SERVER:
        return [redis_url]
    if address.mode is Mode.SENTINEL:
        return [_url_of(redis_url, _primary(address))]
    first = address.nodes[0]
    with redis.Redis.from_url(_url_of(redis_url, first)) as client:
        reply = client.execute_command("CLUSTER SLOTS")
    primaries = {node for node in primaries_by_slot(reply, first[0]) if node}
    return [_url_of(redis_url, node) for node in sorted(primaries)]


def flush(redis_url: str) -> None:
    """Delete every key of one key space; a Redis that is away has none."""
    with suppress(redis.ConnectionError):
        for url in primary_urls(redis_url):
            with redis.Redis.from_url(url) as client:
                client.flushdb()


def _primary(address: RedisUrl) -> Node:
    host, port = address.nodes[0]
    account = {
        name: address.sentinel_options[name]
        for name in ("username", "password")
        if name in address.sentinel_options
    }
    with redis.Redis(host=host, port=port, **account) as sentinel:
        host, port = sentinel.execute_command(
            "SENTINEL GET-MASTER-ADDR-BY-NAME", address.service
        )
    return str_if_bytes(host), int(port)


def _url_of(redis_url: str, node: Node) -> str:
    parts = urlsplit(redis_url)
    query = urlencode(
        [(k, v) for k, v in parse_qsl(parts.query) if not k.startswith("sentinel_")]
    )
    scheme, (host, port) = parts.scheme.partition("+")[0], node
    credentials, at, _ = parts.netloc.rpartition("@")
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{credentials}{at}{host}:{port}?{query}"
