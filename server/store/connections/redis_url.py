"""REDIS_URL: the parameters that it may have; redis-py ignores or misreads others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES = frozenset({"redis", "rediss", "unix"})
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")
_Rule = tuple[re.Pattern[str], str]  # and what the value must be
_ANY: _Rule = (re.compile(r".+", re.DOTALL), "must not be empty")
_PARAMETERS: Mapping[str, _Rule] = {
    "db": (_NUMBER, "must be the number of a database, such as 0"),
    "username": _ANY,
    "password": _ANY,
    "client_name": _ANY,
    "protocol": (re.compile("[23]"), "must be 2 or 3"),
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


def check_redis_url(url: str) -> str:
    """Return the URL if redis-py understands all of it. Raises ValueError."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        hint = "must be a URL; percent-encode [ and ] in a password"
        raise ValueError(hint) from error
    if parts.scheme not in SCHEMES:
        raise ValueError("must begin with redis://, rediss:// or unix://")
    if parts.scheme != "unix":
        _check_address(parts.netloc.rpartition("@")[2], unquote(parts.path))
    elif not parts.path:
        raise ValueError("must name a socket, such as unix:///run/valkey.sock")
    known = {**_PARAMETERS, **(_TLS_PARAMETERS if parts.scheme == "rediss" else {})}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise ValueError(
                f"{name} is not supported in a {parts.scheme}:// URL; use one of: "
                f"{', '.join(sorted(known))}"
            )
        pattern, requirement = known[name]
        if not pattern.fullmatch(value):
            raise ValueError(f"{name} {requirement}")
    return url


def _check_address(address: str, path: str) -> None:
    port = re.sub(r"^(\[[^\]]*\]|[^:]*)", "", address)
    if port and (not _PORT.fullmatch(port[1:]) or int(port[1:]) > 65535):
        raise ValueError("must have a number from 1 to 65535 as its port")
    if path not in {"", "/"} and not _NUMBER.fullmatch(path[1:]):
        raise ValueError("must have the number of a database as its path, such as /0")
