"""HTTP headers -> call metadata, request id, client address and deadline; and back."""

import base64
import binascii
import ipaddress
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edge.config import EdgeSettings
from edge.errors import Header, Refused
from edge.port import Metadata

_PASSED = {
    b"authorization": "authorization",
    b"traceparent": "traceparent",  # W3C Trace Context
    b"tracestate": "tracestate",
    b"accept-language": "accept-language",
    b"user-agent": "grpcgateway-user-agent",
}
_PREFIX = b"grpc-metadata-"
_KEY = re.compile(r"[0-9a-z_.-]+")  # gRPC over HTTP/2: Header-Name
_RESERVED = frozenset(
    (*_PASSED.values(), "content-type", "cookie", "host", "te", "user-agent")
)
_RESERVED_PREFIXES = (
    "grpc-",
    "grpcgateway-",
    "x-forwarded-",
    "x-request-id",
    "x-real-",
)
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")  # gRPC over HTTP/2: Timeout
_UNITS = {"H": 3600, "M": 60, "S": 1, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")
_random = random.Random()  # noqa: S311  # names a request, guards nothing

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(slots=True)
class Head:
    """What the edge reads of a request's headers."""

    headers: dict[bytes, bytes]
    metadata: list[tuple[str, str | bytes]]
    request_id: str
    peer: str
    trusted: bool  # the peer is a proxy that may speak for a client


class HeadReader:
    """Reads request headers by the rules that one application's settings make."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._limit = settings.max_header_bytes
        self._networks: Sequence[Network] = [
            ipaddress.ip_network(cidr, strict=False)
            for cidr in settings.trusted_proxies
        ]
        self._known_peers: dict[str, bool] = {}

    def read(self, scope: Any) -> Head:
        """Give a request's head, whatever its size: an error needs its request id."""
        headers = _joined(scope["headers"])
        client = scope.get("client")
        peer = client[0] if client else ""
        trusted = bool(self._networks) and self._is_trusted(peer)
        request_id = f"{_random.getrandbits(128):032x}"
        if trusted and _REQUEST_ID.fullmatch(headers.get(b"x-request-id", b"")):
            request_id = headers[b"x-request-id"].decode()
        return Head(headers, [], request_id, peer, trusted)

    def fill_metadata(self, head: Head, raw: Iterable[Header]) -> None:
        """Add the call's metadata; raises Refused (431) where headers are too big.

        No client sets what the edge says itself: `x-forwarded-for` is the peer,
        behind what a trusted proxy said.
        """
        size, out = 0, head.metadata
        for name, value in raw:
            size += len(name) + len(value)
            if name in _PASSED:
                _add(out, _PASSED[name], value)
            elif name.startswith(_PREFIX):
                _add_custom(out, name[len(_PREFIX) :].decode("latin-1").lower(), value)
        if size > self._limit:
            raise Refused(
                f"the headers are larger than {self._limit} bytes",
                "HEADERS_TOO_LARGE",
                http=431,
            )
        out.append(("x-request-id", head.request_id))
        forwarded = head.headers.get(b"x-forwarded-for") if head.trusted else None
        told = f"{_ascii(forwarded)}, {head.peer}" if forwarded else head.peer
        if told:
            out.append(("x-forwarded-for", told))

    def _is_trusted(self, peer: str) -> bool:
        known = self._known_peers.get(peer)
        if known is None:
            if len(self._known_peers) > 10_000:
                self._known_peers.clear()
            known = self._known_peers[peer] = self._within(peer)
        return known

    def _within(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)


def _joined(raw: Sequence[Header]) -> dict[bytes, bytes]:
    """Give the headers by name; a repeated one is a list with commas (RFC 9110 5.3)."""
    headers = dict(raw)
    if len(headers) != len(raw):
        headers = {}
        for name, value in raw:
            before = headers.get(name)
            mark = b"; " if name == b"cookie" else b", "
            headers[name] = value if before is None else before + mark + value
    return headers


def _ascii(value: bytes) -> str:
    """Give a header's text, or "" unless it is printable ASCII, as metadata must be."""
    try:
        text = value.decode("ascii")
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""


def _add(out: list[tuple[str, str | bytes]], key: str, value: bytes) -> None:
    text = _ascii(value)
    if text:
        out.append((key, text))


def _add_custom(out: list[tuple[str, str | bytes]], key: str, value: bytes) -> None:
    """Add a `Grpc-Metadata-*` header; `-bin` values come in base64."""
    if (
        not _KEY.fullmatch(key)
        or key in _RESERVED
        or key.startswith(_RESERVED_PREFIXES)
    ):
        return
    if not key.endswith("-bin"):
        _add(out, key, value)
        return
    try:
        out.append(
            (key, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True))
        )
    except binascii.Error:
        return


def deadline(
    header: bytes | None, default: float | None, most: float | None
) -> float | None:
    """Give a call's time in seconds; raises Refused on a bad `grpc-timeout`."""
    if header is None:
        return default
    match = _TIMEOUT.fullmatch(header.decode("latin-1"))
    if not match or not int(match[1]):
        raise Refused("grpc-timeout must be 1 to 8 digits and one of H M S m u n")
    seconds = int(match[1]) * _UNITS[match[2]]
    return seconds if most is None else min(seconds, most)


def response_headers(metadata: Metadata, allowed: frozenset[str]) -> list[Header]:
    """Give the response headers that a reply's metadata becomes, by allow-list."""
    if not metadata or not allowed:
        return []
    return [
        (key.encode(), value.encode("ascii", "ignore"))
        for key, value in metadata
        if key in allowed and isinstance(value, str) and value.isprintable()
    ]
