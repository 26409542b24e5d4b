"""REDIS_URL: one server, a cluster or Sentinels; and the parameters it may have.

redis-py ignores or misreads other parameters, and knows URLs of one server only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio.connection import parse_url

SERVER_PORT = 6379
SENTINEL_PORT = 26379
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]+))?")
_Rule = tuple[re.Pattern[str], str]  # and what the value must be
_ANY: _Rule = (re.compile(r".+", re.DOTALL), "must not be empty")
_PARAMETERS: Mapping[str, _Rule] = {
    "db": (_NUMBER, "must be the number of a database, such as 0"),
    "username": _ANY,
    "password": _ANY,
    "client_name": _ANY,
    "protocol": (re.compile("[23]"), "must be 2 or 3"),
}
_SENTINEL_PARAMETERS: Mapping[str, _Rule] = {
    "sentinel_username": _ANY,
    "sentinel_password": _ANY,
}
_TLS_PARAMETERS: Mapping[str, _Rule] = {
    "ssl_ca_certs": _ANY,
    "ssl_certfile": _ANY,
    "ssl_keyfile": _ANY,
    "ssl_password": _ANY,
    "ssl_cert_reqs": (
        re.compile("none|optional|required"),
        "must be none, optional or required",
    ),
    "ssl_check_hostname": (re.compile("[Tt]rue|[Ff]alse"), "must be true or false"),
}

Node = tuple[str, int]  # host and port


class Mode(StrEnum):
    """What the nodes of a URL are."""

    SERVER = "server"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


_SCHEMES: Mapping[str, tuple[str, Mode]] = {
    "redis": ("redis", Mode.SERVER),
    "rediss": ("rediss", Mode.SERVER),
    "unix": ("unix", Mode.SERVER),
    "redis+cluster": ("redis", Mode.CLUSTER),
    "rediss+cluster": ("rediss", Mode.CLUSTER),
    "redis+sentinel": ("redis", Mode.SENTINEL),
    "rediss+sentinel": ("rediss", Mode.SENTINEL),
}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL, taken apart. The options are redis-py's, of a connection to a node."""

    mode: Mode
    options: Mapping[str, Any] = field(repr=False)
    nodes: tuple[Node, ...] = ()  # of a cluster, or the Sentinels
    service: str = ""  # the name that the Sentinels give to the primary
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)


def parse_redis_url(url: str) -> RedisUrl:
    """Return the parts of a URL. Raises ValueError for what redis-py would misread."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        hint = "must be a URL; percent-encode [ and ] in a password"
        raise ValueError(hint) from error
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            "must begin with redis://, rediss:// or unix://; with redis+cluster:// or "
            "rediss+cluster://; or with redis+sentinel:// or rediss+sentinel://"
        )
    base, mode = _SCHEMES[parts.scheme]
    parameters = _checked_parameters(parts.query, parts.scheme, _known(base, mode))
    credentials, _, hosts = parts.netloc.rpartition("@")
    if mode is Mode.SERVER:
        _check_server(parts.scheme, hosts, unquote(parts.path))
        return RedisUrl(mode, parse_url(url))
    if mode is Mode.CLUSTER:
        nodes = _nodes(hosts, SERVER_PORT)
        _check_path(parts.path)
        return RedisUrl(
            mode, _options(base, credentials, parts.path, parameters), nodes
        )
    nodes = _nodes(hosts, SENTINEL_PORT)
    service = _service(unquote(parts.path))
    return RedisUrl(
        mode,
        _options(base, credentials, "", parameters),
        nodes,
        service,
        _options(base, "", "", _of_sentinels(parameters)),
    )


def _known(base: str, mode: Mode) -> Mapping[str, _Rule]:
    return {
        **_PARAMETERS,
        **(_SENTINEL_PARAMETERS if mode is Mode.SENTINEL else {}),
        **(_TLS_PARAMETERS if base == "rediss" else {}),
    }


def _checked_parameters(
    query: str, scheme: str, known: Mapping[str, _Rule]
) -> Mapping[str, str]:
    parameters = parse_qsl(query, keep_blank_values=True)
    for name, value in parameters:
        if name not in known:
            raise ValueError(
                f"{name} is not supported in a {scheme}:// URL; use one of: "
                f"{', '.join(sorted(known))}"
            )
        pattern, requirement = known[name]
        if not pattern.fullmatch(value):
            raise ValueError(f"{name} {requirement}")
    return dict(parameters)


def _check_server(scheme: str, address: str, path: str) -> None:
    if scheme == "unix":
        if not path:
            raise ValueError("must name a socket, such as unix:///run/valkey.sock")
        return
    if "," in address:
        raise ValueError(
            "must have one address: use redis+cluster:// or redis+sentinel:// for "
            "several"
        )
    port = re.sub(r"^(\[[^\]]*\]|[^:]*)", "", address)
    if port:
        _check_port(port[1:])
    _check_path(path)


def _check_port(port: str) -> None:
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError("must have a number from 1 to 65535 as its port")


def _check_path(path: str) -> None:
    if path not in {"", "/"} and not _NUMBER.fullmatch(path[1:]):
        raise ValueError("must have the number of a database as its path, such as /0")


def _nodes(hosts: str, default_port: int) -> tuple[Node, ...]:
    """Return the addresses of a list that is separated by commas."""
    nodes = []
    for host in hosts.split(","):
        address = _HOST.fullmatch(host)
        if not address:
            raise ValueError(
                "must list its nodes as HOST:PORT,HOST:PORT, without spaces"
            )
        ipv6, name, port = address.groups()
        if port is not None:
            _check_port(port)
        nodes.append((ipv6 or name, int(port or default_port)))
    return tuple(nodes)


def _service(path: str) -> str:
    name = path[1:]
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(
            "must have the name of the service as its path, such as "
            "redis+sentinel://h1,h2,h3/mymaster; db is a parameter, such as ?db=0"
        )
    return name


def _of_sentinels(parameters: Mapping[str, str]) -> Mapping[str, str]:
    """Return what applies to the Sentinels: their account, and TLS."""
    own = {name: value for name, value in parameters.items() if name.startswith("ssl_")}
    for name in ("username", "password"):
        if value := parameters.get(f"sentinel_{name}"):
            own[name] = value
    return own


def _options(
    base: str, credentials: str, path: str, parameters: Mapping[str, str]
) -> Mapping[str, Any]:
    """Return the options of connections to all nodes, as redis-py reads them."""
    own = {
        name: value
        for name, value in parameters.items()
        if name not in _SENTINEL_PARAMETERS
    }
    at = "@" if credentials else ""
    options = dict(parse_url(f"{base}://{credentials}{at}node{path}?{urlencode(own)}"))
    del options["host"]
    return options
