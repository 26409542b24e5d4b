"""Where a call comes from: the socket's peer, or the hop that a trusted proxy names."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote


class ProxyTrust(Protocol):
    """Knows which hosts may name the client's address (R7)."""

    def covers(self, address: str) -> bool:
        """Return whether an address is one of a trusted proxy."""

    def client(self, peer: str, forwarded: Iterable[str]) -> str:
        """Return the client's address; an empty `peer` is this process.

        `forwarded` is the values of x-forwarded-for in their order.
        """


@lru_cache(maxsize=4096)
def peer_address(peer: str) -> str:
    """Return the address in a gRPC peer name: ipv4:1.2.3.4:5, ipv6:[::1]:5."""
    family, _, rest = unquote(peer).partition(":")
    if family not in {"ipv4", "ipv6"}:
        return ""
    return rest.rpartition(":")[0].strip("[]")
