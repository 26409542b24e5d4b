"""Which web origins may call: exact ones, never `*` (OWASP ASVS 3.4.2)."""

from collections.abc import Iterable

from edge.config import EdgeSettings
from edge.errors import Header

_EXPOSED = b"ETag, Retry-After, X-Request-Id, WWW-Authenticate"
_MAX_AGE = b"600"


class Cors:
    """The CORS answers of one application (https://fetch.spec.whatwg.org/)."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.origins = frozenset(o.encode().rstrip(b"/") for o in settings.cors_origins)
        extra = "".join(f", {name}" for name in sorted(settings.response_headers))
        self._exposed = _EXPOSED + extra.encode()

    def headers(self, origin: bytes | None) -> list[Header]:
        """Give the headers that every answer to an origin has."""
        if not self.origins:
            return []
        if origin not in self.origins or origin is None:
            return [(b"vary", b"Origin")]
        return [
            (b"vary", b"Origin"),
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-expose-headers", self._exposed),
        ]

    def preflight(
        self, headers: dict[bytes, bytes], methods: Iterable[str]
    ) -> list[Header]:
        """Give what a preflight request is told beyond that, if its origin may call."""
        asked = headers.get(b"access-control-request-method")
        if asked is None or headers.get(b"origin") not in self.origins:
            return []
        wanted = headers.get(b"access-control-request-headers", b"")
        return [
            (b"access-control-allow-methods", ", ".join(methods).encode()),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", _MAX_AGE),
        ]
