"""HTTP headers -> call metadata, client address and deadline; and back, with CORS."""

import base64
import binascii
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edge.config import KIB, EdgeSettings
from edge.errors import HTTP, Code, Header, HttpError
from edge.http.trusted_proxies import TrustedProxies
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
_OURS = re.compile(  # what no client sets
    r"(?:grpc-|grpcgateway-|x-forwarded-|x-request-id|x-real-).*"
    r"|connection|content-.*|cookie|host|keep-alive|proxy-.*|te|trailer"
    r"|transfer-encoding|upgrade|" + "|".join(_PASSED.values()) + "|user-agent"
)
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")  # gRPC over HTTP/2: Timeout
_UNITS = {"H": 3600, "M": 60, "S": 1, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_SHORTEST = 1e-3  # seconds; less is over before any call is made
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")
_EXPOSED = ("ETag", "Retry-After", "X-Request-Id", "WWW-Authenticate")
_UNPRINTABLE = re.compile(rb"[^\x20-\x7e]")
_ENTRY = 32  # bytes that an entry counts beside its name and value (RFC 9113 6.5.2)
MAX_METADATA = 8 * KIB  # beyond it gRPC refuses some calls, and not always
_CORS_MAX_AGE = b"600"  # seconds that a browser may keep a preflight's answer
_random = random.Random()  # noqa: S311  # names a request, guards nothing


@dataclass(slots=True)
class RequestHead:
    """What the edge reads of a request's headers."""

    headers: dict[bytes, bytes]
    request_id: str
    peer: str
    trusted: bool  # the peer is a proxy that may speak for a client


class HeaderPolicy:
    """Reads and writes headers by the rules that one application's settings make."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._limit = settings.max_header_bytes
        self._proxies = TrustedProxies(settings.trusted_proxies)
        self._sent_on = settings.response_headers
        self._origins = frozenset(
            o.encode().rstrip(b"/") for o in settings.cors_origins
        )
        exposed = (*_EXPOSED, *sorted(settings.response_headers))
        self._exposed = ", ".join(exposed).encode()

    def read(self, scope: Any) -> RequestHead:
        """Give a request's head, whatever its size: an error needs its request id."""
        headers = _joined(scope["headers"])
        client = scope.get("client")
        peer = client[0] if client else ""
        trusted = self._proxies.covers(peer)
        request_id = f"{_random.getrandbits(128):032x}"
        if trusted and _REQUEST_ID.fullmatch(headers.get(b"x-request-id", b"")):
            request_id = headers[b"x-request-id"].decode()
        return RequestHead(headers, request_id, peer, trusted)

    def metadata(self, head: RequestHead, raw: Iterable[Header]) -> Metadata:
        """Give a call's metadata; raises HttpError (431) where headers are too big.

        No client sets what the edge says itself: `x-forwarded-for` is the peer,
        behind what a trusted proxy said.
        """
        size = 0
        out: list[tuple[str, str | bytes]] = []
        for name, value in raw:
            size += len(name) + len(value)
            if name in _PASSED:
                text = _ascii(value)
                if text or name == b"authorization":  # given twice, it counts twice
                    out.append((_PASSED[name], text))
            elif name.startswith(_PREFIX):
                out.extend(
                    _custom(name[len(_PREFIX) :].decode("latin-1").lower(), value)
                )
        if size > self._limit:
            raise _too_large(f"the headers are larger than {self._limit} bytes")
        out.append(("x-request-id", head.request_id))
        forwarded = head.headers.get(b"x-forwarded-for") if head.trusted else None
        hops = f"{_printable(forwarded)}, {head.peer}" if forwarded else head.peer
        if hops:
            out.append(("x-forwarded-for", hops))
        if sum(_ENTRY + len(name) + len(value) for name, value in out) > MAX_METADATA:
            raise _too_large(f"the metadata is larger than {MAX_METADATA} bytes")
        return out

    def sent_on(self, metadata: Metadata) -> list[Header]:
        """Give the headers that a reply's metadata becomes, by allow-list."""
        if not self._sent_on:
            return []
        return [
            (key.encode(), value.encode("ascii", "ignore"))
            for key, value in metadata
            if key in self._sent_on and isinstance(value, str) and value.isprintable()
        ]

    def common(self, head: RequestHead) -> list[Header]:
        """Give what every answer has: its request id, and for whom it is.

        Origins are exact, never `*` (OWASP ASVS 3.4.2, https://fetch.spec.whatwg.org/).
        """
        out = [(b"x-request-id", head.request_id.encode())]
        if self._origins:
            out.append((b"vary", b"Origin"))
            origin = head.headers.get(b"origin")
            if origin in self._origins and origin is not None:
                out.append((b"access-control-allow-origin", origin))
                out.append((b"access-control-allow-credentials", b"true"))
                out.append((b"access-control-expose-headers", self._exposed))
        return out

    def preflight(self, head: RequestHead, methods: bytes) -> list[Header]:
        """Give what a preflight request is told beyond that, if its origin may call."""
        headers = head.headers
        if b"access-control-request-method" not in headers:
            return []
        if headers.get(b"origin") not in self._origins:
            return []
        wanted = headers.get(b"access-control-request-headers", b"")
        return [
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", _CORS_MAX_AGE),
        ]


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


def has_body(headers: dict[bytes, bytes]) -> bool:
    """Tell whether a request says that a body follows."""
    length = headers.get(b"content-length", b"0")
    return length != b"0" or b"transfer-encoding" in headers


def _too_large(told: str) -> HttpError:
    return HttpError(told, "HEADERS_TOO_LARGE", http=431)


def _ascii(value: bytes) -> str:
    """Give a header's text, or "" unless it is printable ASCII, as metadata must be."""
    text = value.decode("latin-1")
    return text if text.isascii() and text.isprintable() else ""


def _printable(value: bytes) -> str:
    """Return a header's text with a "?" for whatever is not printable ASCII."""
    return _UNPRINTABLE.sub(b"?", value).decode()


def _custom(key: str, value: bytes) -> Metadata:
    """Give what a `Grpc-Metadata-*` header says; `-bin` values come in base64."""
    if not _KEY.fullmatch(key) or _OURS.fullmatch(key):
        return ()
    if not key.endswith("-bin"):
        text = _ascii(value)
        return ((key, text),) if text else ()
    try:
        padded = value + b"=" * (-len(value) % 4)
        return ((key, base64.b64decode(padded, validate=True)),)
    except binascii.Error:
        return ()


def deadline(
    header: bytes | None, default: float | None, most: float | None
) -> float | None:
    """Give a call's time in seconds; raises HttpError on a bad `grpc-timeout`."""
    if header is None:
        return default
    match = _TIMEOUT.fullmatch(header.decode("latin-1"))
    if not match or not int(match[1]):
        raise HttpError("grpc-timeout must be 1 to 8 digits and one of H M S m u n")
    seconds = int(match[1]) * _UNITS[match[2]]
    if seconds < _SHORTEST:
        told, code = "deadline exceeded", Code.DEADLINE_EXCEEDED
        raise HttpError(told, code.name, http=HTTP[code], code=code)
    return seconds if most is None else min(seconds, most)
