"""The client's address, from the socket's peer and from what trusted proxies add."""

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import (
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Network = IPv4Network | IPv6Network
_CACHE_SIZE = 4096
_MAPPED_PREFIX = 96  # bits of ::ffff:0:0/96, which stand before an IPv4 address
# An address alone, or with a port or a zone, as proxies write it:
# 192.0.2.1, 192.0.2.1:4711, 2001:db8::1, [2001:db8::1], [2001:db8::1]:4711
_HOP = re.compile(
    r"(?P<v4>[0-9.]+)(?::[0-9]{1,5})?"
    r"|(?P<v6>[0-9A-Fa-f:.]+)(?:%[^\]]*)?"
    r"|\[(?P<bracketed>[0-9A-Fa-f:.]+)(?:%[^\]]*)?\](?::[0-9]{1,5})?"
)


def parse_address(text: str) -> str:
    """Return the IP address in a hop of X-Forwarded-For; "" where there is none.

    Port, quotes, brackets and zone are dropped, and an IPv4 address that is mapped
    into IPv6 is unwrapped, so that one host has one spelling.
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    match = _HOP.fullmatch(text)
    if match is None:
        return ""
    try:
        address = ip_address(match["v4"] or match["v6"] or match["bracketed"])
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


class TrustedProxies:
    """Networks whose hosts are believed when they name the host before them."""

    def __init__(self, networks: Iterable[str | Network]) -> None:
        """Read the networks; raises ValueError for one that is invalid."""
        self._networks = tuple(_network(network) for network in networks)
        self._hop = lru_cache(maxsize=_CACHE_SIZE)(self._parse_hop)
        self._client = lru_cache(maxsize=_CACHE_SIZE)(self._find_client)

    def _parse_hop(self, text: str) -> tuple[str, bool]:
        address = parse_address(text)
        if not address:
            return "", False
        parsed = ip_address(address)
        return address, any(parsed in network for network in self._networks)

    def covers(self, address: str) -> bool:
        """Return whether an address is one of a trusted proxy."""
        return self._hop(address)[1]

    def client(self, peer: str, forwarded: Iterable[str]) -> str:
        """Return the address of the rightmost hop that is not a trusted proxy.

        `forwarded` is the values of the X-Forwarded-For lines in their order. An
        empty `peer` is this process, which is trusted. A hop that is no address
        counts as the proxy that added it; "" where that is this process.
        """
        return self._client(peer, ",".join(forwarded))

    def _find_client(self, peer: str, forwarded: str) -> str:
        client = ""
        for hop in reversed([*forwarded.split(","), peer]):
            if not hop or hop.isspace():
                continue
            address, trusted = self._hop(hop)
            client = address or client
            if not trusted:
                break
        return client


def _network(network: str | Network) -> Network:
    parsed = ip_network(network, strict=False)
    if isinstance(parsed, IPv6Network) and parsed.prefixlen >= _MAPPED_PREFIX:
        mapped = parsed.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, parsed.prefixlen - _MAPPED_PREFIX))
    return parsed
