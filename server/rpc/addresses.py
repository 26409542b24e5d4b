"""Where a call comes from: the socket's peer, or the hop a trusted proxy names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from urllib.parse import unquote

Network = IPv4Network | IPv6Network


@lru_cache(maxsize=4096)
def peer_address(peer: str) -> str:
    """Give the address in what gRPC calls a peer: ipv4:1.2.3.4:5, ipv6:[::1]:5."""
    family, _, rest = unquote(peer).partition(":")
    if family not in {"ipv4", "ipv6"}:
        return ""
    return rest.rpartition(":")[0].strip("[]")


class TrustedProxies:
    """Tells the client's address from what proxies say (R7)."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)
        self.covers = lru_cache(maxsize=4096)(self._covers)

    def _covers(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def client(self, forwarded: str) -> str:
        """Give the rightmost hop of x-forwarded-for that is not a trusted proxy."""
        hops = [hop.strip() for hop in forwarded.split(",") if hop.strip()]
        for hop in reversed(hops):
            if not self.covers(hop):
                return hop
        return hops[0] if hops else ""
