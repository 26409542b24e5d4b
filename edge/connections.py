"""Limits of open connections; a request on one connection more is answered 429."""

import logging
from collections import Counter
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

import orjson

from edge.errors import Code
from edge.http.streams import Receive, Send
from edge.http.trusted_proxies import TrustedProxies, parse_address
from edge.responses.failures import error_body

MAX_CONNECTIONS = 8_192
MAX_CONNECTIONS_PER_ADDRESS = 512
# Connections that wait for this answer, beside the others; more are closed at once.
MAX_REFUSED_CONNECTIONS = 256
_log = logging.getLogger("edge")


class ConnectionLimits:
    """Counts the open connections of one listener.

    Addresses of trusted proxies and of private networks have no limit of their own:
    many clients may stand behind them.
    """

    def __init__(
        self,
        proxies: TrustedProxies,
        max_connections: int = MAX_CONNECTIONS,
        max_per_address: int = MAX_CONNECTIONS_PER_ADDRESS,
    ) -> None:
        self._proxies = proxies
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._by_address: Counter[str] = Counter()
        self._logged = False
        self.open = 0
        self.refused = 0  # connections that are open to be answered 429

    def admit(self, address: str) -> bool:
        """Count a connection that opens; return whether its requests are served."""
        key = self._key(address)
        if self.open < self._max_connections and (
            not key or self._by_address[key] < self._max_per_address
        ):
            self.open += 1
            self._by_address[key] += 1
            return True
        self.refused += 1
        if not self._logged:
            self._logged = True
            open_connections = f"{self.open} open, {self._by_address[key]} of {address}"
            _log.warning("connections are refused: %s", open_connections)
        return False

    def release(self, address: str, *, admitted: bool) -> None:
        """Count a connection that closes."""
        if not admitted:
            self.refused -= 1
            return
        key = self._key(address)
        self.open -= 1
        self._by_address[key] -= 1
        if not self._by_address[key]:
            del self._by_address[key]
        if self._logged and self.open < self._max_connections // 2:
            self._logged = False

    def _key(self, address: str) -> str:
        """Return what the connections of a client are counted by; "": nothing."""
        if self._proxies.covers(address):
            return ""
        return _source(address)


@lru_cache(maxsize=4096)
def _source(address: str) -> str:
    """Return an IPv4 address or an IPv6 /64; "" for a private or unknown address."""
    text = parse_address(address)
    if not text:
        return ""
    parsed = ip_address(text)
    if parsed.is_private:
        return ""
    return parsed.packed[:8].hex() if isinstance(parsed, IPv6Address) else text


async def refuse_connection(_scope: object, _receive: Receive, send: Send) -> None:
    """Answer 429 and close the connection: an ASGI application."""
    message = "too many connections: retry later"
    error = error_body(Code.RESOURCE_EXHAUSTED, message, "OVERLOADED", "")
    body = orjson.dumps(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"1"),
        (b"connection", b"close"),
    ]
    start = {"type": "http.response.start", "status": 429, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
