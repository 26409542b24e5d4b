"""REDIS_URL: what each form means, and which rule a malformed one breaks."""

import re

import pytest
from redis.asyncio import SSLConnection

from server.store.redis.redis_url import Mode, parse_redis_url


def test_cluster_url_lists_nodes_with_common_options() -> None:
    url = parse_redis_url("redis+cluster://ana:p%40ss@h1:7001,h2,[::1]:7003/2")
    assert (url.mode, url.nodes) == (
        Mode.CLUSTER,
        (("h1", 7001), ("h2", 6379), ("::1", 7003)),
    )
    assert url.options == {"username": "ana", "password": "p@ss", "db": 2}
    assert "p@ss" not in repr(url)


def test_sentinel_url_names_service_and_keeps_accounts_apart() -> None:
    url = parse_redis_url(
        "redis+sentinel://:secret@h1,h2:5000/academy"
        "?db=3&sentinel_username=watch&sentinel_password=hidden"
    )
    assert (url.mode, url.service) == (Mode.SENTINEL, "academy")
    assert url.nodes == (("h1", 26379), ("h2", 5000))
    assert url.options == {"password": "secret", "db": 3}
    assert url.sentinel_options == {"username": "watch", "password": "hidden"}


@pytest.mark.parametrize("mode", ["cluster", "sentinel"])
def test_tls_applies_to_every_connection(mode: str) -> None:
    url = parse_redis_url(
        f"rediss+{mode}://h/{'academy' if mode == 'sentinel' else ''}"
        "?ssl_ca_certs=%2Frun%2Fca.pem&ssl_check_hostname=false"
    )
    tls = {
        "connection_class": SSLConnection,
        "ssl_ca_certs": "/run/ca.pem",
        "ssl_check_hostname": False,
    }
    assert url.options == tls
    if mode == "sentinel":
        assert url.sentinel_options == tls


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("redis+other://h", "redis+cluster://"),
        ("redis://h1:1,h2:2", "use redis+cluster:// or redis+sentinel:// for several"),
        ("rediss://ana:a,b@h1,h2", "redis+cluster:// or redis+sentinel:// for"),
        ("redis+cluster://", "must list its nodes as HOST:PORT,HOST:PORT"),
        ("redis+cluster://h1,,h2", "must list its nodes as HOST:PORT,HOST:PORT"),
        ("redis+cluster://h1, h2", "must list its nodes as HOST:PORT,HOST:PORT"),
        ("redis+cluster://h1:0", "must have a number from 1 to 65535 as its port"),
        ("redis+cluster://h1,h2:70000", "must have a number from 1 to 65535"),
        ("redis+cluster://h/one", "must have the number of a database"),
        ("redis+cluster://h?sentinel_password=x", "sentinel_password is not supported"),
        ("redis+cluster://h?ssl_ca_certs=x", "ssl_ca_certs is not supported"),
        ("redis+sentinel://h1,h2", "must have the name of the service as its path"),
        ("redis+sentinel://h/academy/1", "must have the name of the service"),
        ("redis+sentinel://h/academy?db=one", "db must be the number of a database"),
    ],
)
def test_malformed_url_names_the_rule(url: str, rule: str) -> None:
    with pytest.raises(ValueError, match=re.escape(rule)):
        parse_redis_url(url)
