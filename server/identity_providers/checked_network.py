"""Connections to public addresses only.

A name is resolved once, every address of it is checked, and the connection goes to a
checked address: a name that resolves to another address a moment later (DNS rebinding)
has no effect.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpcore2

IpAddress = IPv4Address | IPv6Address
# Returns the addresses of a host, as text.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052 2.1


class AddressRefused(httpcore2.ConnectError):
    """A host has no address, or one that must not be connected to."""


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host. Raises OSError."""
    loop = asyncio.get_running_loop()
    entries = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in entries]


class CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Opens connections after `is_allowed` has accepted every address of the host."""

    def __init__(
        self,
        is_allowed: Callable[[IpAddress], bool],
        resolve: Resolve = resolve_host,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self._is_allowed = is_allowed
        self._resolve = resolve
        self._network = network or httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that responds. Raises httpcore2.ConnectError."""
        failure: Exception = AddressRefused(f"{host} has no address")
        for address in await self._checked_addresses(host, port):
            try:
                return await self._network.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _checked_addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = await self._resolve(host.strip("[]"), port)
        except (OSError, UnicodeError) as error:
            raise AddressRefused(f"{host} cannot be resolved") from error
        for address in addresses:
            if not self._is_allowed(ip_address(address)):
                raise AddressRefused(f"{host} has the address {address}")
        return addresses


def is_public(address: IpAddress) -> bool:
    """Return whether an address, and one that it embeds, is on the public internet."""
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            embedded = IPv4Address(address.packed[-4:])
        if embedded:
            return is_public(embedded)
        if address.teredo:
            return False
    return address.is_global and not address.is_multicast
