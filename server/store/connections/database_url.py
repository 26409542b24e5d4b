"""DATABASE_URL: every connection parameter of libpq, mapped to asyncpg or refused.

The parameters are those of https://www.postgresql.org/docs/18/libpq-connect.html.
asyncpg parses a URL as libpq does, but sends what it does not know to the server as a
run-time setting, which the server refuses in its own words or, worse, accepts.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

SCHEMES = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
MAX_CONNECT_TIMEOUT = 60
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.%]+\]|[^\[\]:@]*)(?::(?P<port>[^:]*))?")
_TLS_MODES = frozenset(
    {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
)
_TLS_VERSIONS = frozenset({"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"})
_SESSIONS = frozenset(
    {"any", "primary", "standby", "read-write", "read-only", "prefer-standby"}
)
_CHOICES: Mapping[str, frozenset[str]] = {
    "sslmode": _TLS_MODES,
    "target_session_attrs": _SESSIONS,
    "sslnegotiation": frozenset({"postgres", "direct"}),
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "ssl_max_protocol_version": _TLS_VERSIONS,
    "gsslib": frozenset({"gssapi", "sspi"}),
}
_FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl", "passfile")
# parameters that asyncpg handles, or that the server takes at connection start
_MAPPED = frozenset(
    {
        *_CHOICES,
        *_FILES,
        *("host", "port", "dbname", "user", "password", "service", "sslpassword"),
        *("krbsrvname", "application_name", "options"),
    }
)
# parameters that asyncpg lacks: accepted with the values that describe what it does
_FIXED: Mapping[str, frozenset[str]] = {
    "channel_binding": frozenset({"disable", "prefer"}),
    "client_encoding": frozenset({"auto", "utf8", "UTF8", "utf-8", "UTF-8"}),
    "gssencmode": frozenset({"disable", "prefer"}),
    "gssdelegation": frozenset({"0"}),
    "load_balance_hosts": frozenset({"disable"}),
    "min_protocol_version": frozenset({"3.0"}),
    "max_protocol_version": frozenset({"3.0", "latest"}),
    "replication": frozenset({"false", "off", "no", "0"}),
    "requiressl": frozenset({"0"}),
    "sslcertmode": frozenset({"allow"}),
    "sslcompression": frozenset({"0"}),
    "sslsni": frozenset({"1"}),
}
_UNSUPPORTED = frozenset(
    {
        *("hostaddr", "keepalives", "keepalives_count", "keepalives_idle"),
        *("keepalives_interval", "oauth_client_id", "oauth_client_secret"),
        *("oauth_issuer", "oauth_scope", "require_auth", "requirepeer"),
        *("scram_client_key", "scram_server_key", "servicefile", "sslcrldir"),
        *("sslkeylogfile", "tcp_user_timeout"),
    }
)


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """What asyncpg needs to connect, and the same without secrets for people."""

    dsn: str = field(repr=False)
    displayed: str
    role: str
    host_count: int = 1
    connect_timeout: float | None = None
    application_name: str = "academy"
    tls: ssl.SSLContext | None = None

    @property
    def connect_arguments(self) -> dict[str, Any]:
        """The arguments of asyncpg.connect that the URL determines."""
        arguments: dict[str, Any] = {"dsn": self.dsn}
        if self.connect_timeout is not None:
            arguments["timeout"] = self.connect_timeout
        if self.tls is not None:
            arguments["ssl"] = self.tls
        return arguments


def parse_database_url(url: str) -> DatabaseUrl:
    """Parse a URL of Postgres. Raises ValueError with one sentence per URL."""
    parts = _split(url)
    parameters = _parameters(parts.query)
    host_count = _check_hosts(parts.netloc.rpartition("@")[2], parameters)
    for name, choices in _CHOICES.items():
        if name in parameters and parameters[name] not in choices:
            raise ValueError(f"{name} must be one of: {', '.join(sorted(choices))}")
    tls = _system_tls(parameters)
    for name in _FILES:
        if name in parameters and not os.access(parameters[name], os.R_OK):
            raise ValueError(f"{name} names a file that cannot be read")
    timeout = _connect_timeout(parameters.pop("connect_timeout", None))
    application_name = parameters.pop("application_name", "academy")
    return DatabaseUrl(
        dsn=_join(parts.netloc, parts.path, urlencode(parameters, quote_via=quote)),
        displayed=_displayed(parts, parameters),
        role=unquote(parts.username or "") or parameters.get("user", ""),
        host_count=host_count,
        connect_timeout=timeout,
        application_name=application_name,
        tls=tls,
    )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        hint = "must be a URL; percent-encode [ and ] in a password"
        raise ValueError(hint) from error
    if parts.scheme not in SCHEMES:
        raise ValueError("must begin with postgresql://")
    if parts.netloc.count("@") > 1:
        raise ValueError("must not contain @ in a password: percent-encode it as %40")
    if parts.fragment:
        raise ValueError("must not contain #: percent-encode it as %23")
    return parts


def _parameters(query: str) -> dict[str, str]:
    """Return the parameters that asyncpg gets; the last of a name counts, as in libpq.

    Raises ValueError naming the first one that cannot be honoured.
    """
    # libpq takes + literally; so does this
    pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)
    parameters = {name: value for name, value in pairs if value}
    if "ssl" in parameters:  # the name that SQLAlchemy's users know
        parameters.setdefault("sslmode", parameters.pop("ssl"))
    if "fallback_application_name" in parameters:
        name = parameters.pop("fallback_application_name")
        parameters.setdefault("application_name", name)
    for name in list(parameters):
        _check_supported(name, parameters[name])
        if name in _FIXED:
            del parameters[name]
    return parameters


def _check_supported(name: str, value: str) -> None:
    if name in _FIXED and value not in _FIXED[name]:
        accepted = " or ".join(sorted(_FIXED[name]))
        raise ValueError(
            f"{name}={value} is not supported by the driver; remove it, or use "
            f"{name}={accepted}"
        )
    if name in _UNSUPPORTED:
        raise ValueError(f"{name} is not supported by the driver; remove it")
    if name not in _MAPPED | _FIXED.keys() | {"connect_timeout"}:
        raise ValueError(
            f"{name} is not a connection parameter of Postgres; set a run-time "
            "parameter as options=-c%20name%3Dvalue"
        )


def _check_hosts(netloc: str, parameters: Mapping[str, str]) -> int:
    """Return the number of hosts. Raises ValueError."""
    hosts = [*netloc.split(","), *parameters.get("host", "").split(",")]
    matches = [_HOST.fullmatch(unquote(host)) for host in hosts if host[:1] != "/"]
    if not all(matches):
        raise ValueError(
            "must name each host as HOST or HOST:PORT, with an IPv6 address in "
            "brackets, such as [::1]:5432"
        )
    ports = [match["port"] for match in matches if match and match["port"]]
    ports += [p for p in parameters.get("port", "").split(",") if p]
    if not all(_PORT.fullmatch(port) and int(port) <= 65535 for port in ports):
        raise ValueError("must have a number from 1 to 65535 as its port")
    return sum(bool(host) for host in hosts)


def _connect_timeout(value: str | None) -> float | None:
    if value is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]?", value) or int(value) > MAX_CONNECT_TIMEOUT:
        raise ValueError(
            f"connect_timeout must be a number of seconds from 1 to "
            f"{MAX_CONNECT_TIMEOUT}"
        )
    return float(value)


def _system_tls(parameters: dict[str, str]) -> ssl.SSLContext | None:
    """Return a context for sslrootcert=system, which libpq verifies in full."""
    if parameters.get("sslrootcert") != "system":
        return None
    if parameters.pop("sslmode", "verify-full") != "verify-full":
        raise ValueError("sslrootcert=system requires sslmode=verify-full")
    del parameters["sslrootcert"]
    context = ssl.create_default_context()
    certificate, key = parameters.pop("sslcert", None), parameters.pop("sslkey", None)
    if certificate:
        _load_certificate(context, certificate, key, parameters.pop("sslpassword", ""))
    return context


def _load_certificate(
    context: ssl.SSLContext, certificate: str, key: str | None, password: str
) -> None:
    try:
        context.load_cert_chain(certificate, key, lambda: password)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError("sslcert and sslkey cannot be loaded as a pair") from error


def _displayed(parts: SplitResult, parameters: Mapping[str, str]) -> str:
    """Return the URL with the password masked and only harmless parameters."""
    credentials, at, hosts = parts.netloc.rpartition("@")
    user, colon, _ = credentials.partition(":")
    query = {k: v for k, v in parameters.items() if k in {"host", "port", "sslmode"}}
    netloc = f"{user}{':***' if colon else ''}{at}{hosts}"
    return _join(netloc, parts.path, urlencode(query, safe="/,", quote_via=quote))


def _join(netloc: str, path: str, query: str) -> str:
    return f"postgresql://{netloc}{path}" + (f"?{query}" if query else "")
