"""Settings that are addresses: listeners, servers, networks, URLs, e-mail senders."""

from __future__ import annotations

import re
from email.utils import parseaddr
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from server.mail.smtp import MailServer
from server.store.connections.database_url import parse_database_url
from server.store.redis.redis_url import parse_redis_url

_PORT = re.compile(r"0|[1-9][0-9]{0,4}")
_PREFIX = re.compile(r"0|[1-9][0-9]{0,2}")
_HOST_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST_NAME = re.compile(rf"(?!.*(^|\.)[0-9]+$){_HOST_LABEL}(\.{_HOST_LABEL})*")
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[A-Za-z0-9.-]+)(:[1-9][0-9]{0,4})?/?")
Network = IPv4Network | IPv6Network


def _split_list(value: Any) -> Any:
    """Split a comma-separated list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _check_listen_address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not _is_host(host) or not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError("must be ADDRESS:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    return value


def _check_optional_listen_address(value: str) -> str:
    return value and _check_listen_address(value)


def check_server_address(value: str) -> str:
    """Return the address of a server to connect to. Raises ValueError."""
    host, _, port = value.rpartition(":")
    is_host = _is_host(host) or HOST_NAME.fullmatch(host)
    if not is_host or not _PORT.fullmatch(port) or not 0 < int(port) <= 65535:
        raise ValueError("must be HOST:PORT, such as academy:50051 or [::1]:50051")
    return value


def _is_host(host: str) -> bool:
    """Return whether this is localhost, an IPv4 address or an IPv6 one in brackets."""
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        return host == "localhost"
    return isinstance(address, IPv6Address) is bracketed


def overlap(first: str, second: str) -> bool:
    """Return whether two listeners would need the same port of the same address.

    They are HOST:PORT; port 0, "" and unix:PATH overlap with nothing. [::] accepts
    IPv4 connections as well.
    """
    if not (first and second) or "unix:" in (first[:5], second[:5]):
        return False
    (host, port), (other, other_port) = map(_host_and_port, (first, second))
    if port != other_port or port == 0:
        return False
    return host == other or any(
        a.is_unspecified and (a.version == 6 or b.version == 4 or b.is_unspecified)
        for a, b in ((host, other), (other, host))
    )


def _host_and_port(address: str) -> tuple[IPv4Address | IPv6Address, int]:
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    return ip_address(host), int(port)


def _parse_networks(value: Any) -> Any:
    return tuple(
        _parse_network(part) if isinstance(part, str) else part
        for part in _split_list(value)
    )


def _parse_network(text: str) -> Network:
    _, slash, prefix = text.partition("/")
    try:
        if slash and not _PREFIX.fullmatch(prefix):
            raise ValueError
        return ip_network(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} must be an IP address, or a network whose host bits are 0, "
            "such as 10.0.0.0/8"
        ) from error


def _check_origin(value: str) -> str:
    match = _ORIGIN.fullmatch(value)
    if match is None or int((match[2] or ":1")[1:]) > 65535:
        raise ValueError("must be an origin such as https://academy.example")
    return value


def _check_public_url(value: str) -> str:
    return value and _check_origin(value)


def _check_otlp_endpoint(value: str) -> str:
    parts = urlsplit(value)
    if value and (
        not _ORIGIN.fullmatch(f"{parts.scheme}://{parts.netloc}") or parts.query
    ):
        raise ValueError(
            "must be a URL such as http://127.0.0.1:4318, without a user name"
        )
    return value


def _check_origins(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(_check_origin, values))


def _check_database_url(value: SecretStr) -> SecretStr:
    parse_database_url(value.get_secret_value())
    return value


def _check_redis_url(value: SecretStr) -> SecretStr:
    parse_redis_url(value.get_secret_value())
    return value


def _check_smtp_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    try:
        port = urlsplit(url).netloc.rpartition("@")[2].rpartition("]")[2]
        if ":" in port and not re.fullmatch(r"[^:]*:[1-9][0-9]{0,4}", port):
            raise ValueError
        MailServer.parse(url)
    except ValueError as error:
        raise ValueError(
            "must be smtp://[USER:PASSWORD@]HOST:PORT or "
            "smtps://[USER:PASSWORD@]HOST:PORT; the only parameter is starttls, which "
            "may be required, offered or never"
        ) from error
    return value


def _check_mail_from(value: str) -> str:
    """Accept an address with or without a name; RFC 5322 allows more."""
    address = parseaddr(value)[1]
    if not re.fullmatch(r"[^@\s]+@[a-zA-Z0-9.-]+", address) or not value.isprintable():
        raise ValueError(
            "must be an e-mail address, such as Academy <no-reply@example.com>"
        )
    return value


ListenAddress = Annotated[str, AfterValidator(_check_listen_address)]
OptionalListenAddress = Annotated[str, AfterValidator(_check_optional_listen_address)]
Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_parse_networks)]
Origins = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(_split_list),
    AfterValidator(_check_origins),
]
PublicUrl = Annotated[str, AfterValidator(_check_public_url)]
OtlpEndpoint = Annotated[str, AfterValidator(_check_otlp_endpoint)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_check_database_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]
SmtpUrl = Annotated[SecretStr, AfterValidator(_check_smtp_url)]
MailFrom = Annotated[str, AfterValidator(_check_mail_from)]
