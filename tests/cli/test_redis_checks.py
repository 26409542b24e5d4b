"""The check of Redis: each mistake in REDIS_URL is named."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.cli.monitoring.redis_checks import check_redis
from server.store.redis import redis_client
from tests.valkey_nodes import (
    ValkeyCluster,
    ValkeyReplication,
    unused_ports,
    valkey,
    valkey_cluster,
    valkey_replication,
)


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Return the addresses of one server of each kind."""
    with ExitStack() as stack:
        pair: ValkeyReplication = stack.enter_context(valkey_replication())
        cluster: ValkeyCluster = stack.enter_context(valkey_cluster(primaries=1))
        yield {
            "server": pair.primary.address,
            "replica": pair.replica.address,
            "sentinel": pair.sentinel.address,
            "node": cluster.primaries[0].address,
        }


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("redis://{sentinel}", "as a Sentinel: use redis+sentinel://"),
        ("redis://{replica}", "it is a replica: use the address of its primary"),
        ("redis+cluster://{node}/99", "a cluster has only database 0"),
        ("redis+cluster://{node}/99", "remove /99"),
        ("redis+cluster://{server}", "it is not a cluster: use redis://"),
        ("redis+sentinel://{sentinel}/mymastr", "know no service mymastr"),
        ("redis+sentinel://{server}/academy", "it is not a Sentinel, whose default"),
        ("rediss://{server}", "does it serve TLS"),
        ("rediss+cluster://{node}", "does it serve TLS"),
        ("rediss+sentinel://{sentinel}/academy", "does it serve TLS"),
    ],
)
async def test_mistake_in_the_url_is_named(
    addresses: dict[str, str],
    url: str,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {**redis_client._BACKGROUND_LIMITS, "socket_connect_timeout": 0.5}
    monkeypatch.setattr(redis_client, "_BACKGROUND_LIMITS", limits)  # 5 s are too long
    finding = await check_redis(url.format(**addresses), "the URL")
    assert not finding.ok
    assert advice in finding.advice
    assert finding.advice.endswith("each process applies the rate limits separately")


@pytest.mark.parametrize(
    "url",
    [
        "redis://{server}",
        "redis+cluster://{node}",
        "redis+sentinel://{sentinel}/academy",
    ],
)
async def test_correct_url_has_no_advice(addresses: dict[str, str], url: str) -> None:
    finding = await check_redis(url.format(**addresses), "the URL")
    assert (finding.ok, finding.advice) == (True, "")


@pytest.mark.parametrize(
    "url", ["rediss://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/academy"]
)
async def test_server_that_is_away_is_no_mistake_in_the_url(url: str) -> None:
    finding = await check_redis(url, "the URL")
    assert finding.advice.startswith("start Redis, or correct REDIS_URL; until then")


async def test_account_must_be_allowed_to_run_scripts(tmp_path: Path) -> None:
    (port,) = unused_ports(1)
    with valkey(tmp_path, port) as node:
        node.command("ACL", "SETUSER", "ana", "on", ">x", "~*", "+@all", "-evalsha")
        finding = await check_redis(f"redis://ana:x@{node.address}", "the URL")
    assert finding.result == "the URL: no valid response (NoPermissionError)"
