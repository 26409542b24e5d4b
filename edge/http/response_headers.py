"""Headers of responses: security, CORS, and metadata of replies by allow-list."""

from edge.config import EdgeSettings
from edge.errors import Header
from edge.http.request_headers import RequestHead
from edge.port import Metadata

_EXPOSED = ("ETag", "Retry-After", "X-Request-Id", "WWW-Authenticate")
_CORS_MAX_AGE = b"600"  # seconds that a browser may cache a preflight response
_HSTS_MAX_AGE = 365 * 86_400  # seconds
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)


def transport_security(settings: EdgeSettings) -> tuple[Header, ...]:
    """Return the HSTS header (RFC 6797) of a site that browsers reach by https."""
    if not (settings.tls or settings.public_url.startswith("https:")):
        return ()
    value = b"max-age=%d; includeSubDomains" % _HSTS_MAX_AGE
    return ((b"strict-transport-security", value),)


class ResponseHeaders:
    """Writes headers by the rules that one application's settings make."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._response_headers = settings.response_headers
        self._origins = frozenset(
            o.encode().rstrip(b"/") for o in settings.cors_origins
        )
        exposed = (*_EXPOSED, *sorted(settings.response_headers))
        self._exposed = ", ".join(exposed).encode()
        self._fixed: tuple[Header, ...] = _SECURITY_HEADERS
        self._fixed += transport_security(settings)
        if self._origins:
            self._fixed += ((b"vary", b"Origin"),)

    def from_metadata(self, metadata: Metadata) -> list[Header]:
        """Return the reply metadata that is sent as headers, by allow-list."""
        if not self._response_headers:
            return []
        return [
            (key.encode(), value.encode("ascii", "ignore"))
            for key, value in metadata
            if key in self._response_headers
            and isinstance(value, str)
            and value.isprintable()
        ]

    def common(self, head: RequestHead) -> list[Header]:
        """Return the headers that every response has.

        CORS origins are exact, never `*` (OWASP ASVS 3.4.2,
        https://fetch.spec.whatwg.org/).
        """
        common = [*self._fixed, (b"x-request-id", head.request_id.encode())]
        if self._origins:
            origin = head.headers.get(b"origin")
            if origin in self._origins and origin is not None:
                common.append((b"access-control-allow-origin", origin))
                common.append((b"access-control-allow-credentials", b"true"))
                common.append((b"access-control-expose-headers", self._exposed))
        return common

    def preflight(self, head: RequestHead, methods: bytes) -> list[Header]:
        """Return the headers of a preflight response, if its origin is allowed."""
        headers = head.headers
        if b"access-control-request-method" not in headers:
            return []
        if headers.get(b"origin") not in self._origins:
            return []
        requested = headers.get(b"access-control-request-headers", b"")
        return [
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", requested),
            (b"access-control-max-age", _CORS_MAX_AGE),
        ]
