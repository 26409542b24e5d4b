"""The address that a call over gRPC comes from."""

import pytest

from edge.http.trusted_proxies import TrustedProxies
from server.rpc.addresses import peer_address
from server.rpc.contract import methods
from server.rpc.listener import build_call

PROXIES = TrustedProxies(["10.0.0.0/8"])


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:4711", "192.0.2.1"),
        ("ipv6:[2001:db8::1]:4711", "2001:db8::1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("unix:/tmp/x", ""),
    ],
)
def test_peer_address_is_without_family_and_port(peer: str, address: str) -> None:
    assert peer_address(peer) == address


def address_of(peer: str, *forwarded: str) -> str:
    """Return the address of a call whose x-forwarded-for has these values."""
    pairs = [("x-forwarded-for", value) for value in forwarded]
    trusted = PROXIES.covers(peer)
    return build_call(next(methods()), b"", pairs, peer, trusted, PROXIES).address


@pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1"])
def test_address_is_what_a_trusted_proxy_names(peer: str) -> None:
    """R7: one spelling for each client, whatever the port."""
    for number in range(3):
        assert address_of(peer, f"203.0.113.9:{41_000 + number}") == "203.0.113.9"
    assert address_of("::ffff:192.0.2.1", "203.0.113.9") == "192.0.2.1"
    assert address_of("", "203.0.113.9") == ""  # a peer without an address


def test_address_is_read_from_every_forwarded_value_in_order() -> None:
    """Metadata may have one name several times."""
    assert address_of("10.0.0.1", "203.0.113.9", "10.0.0.2") == "203.0.113.9"
    assert address_of("10.0.0.1", "198.51.100.1", "203.0.113.9") == "203.0.113.9"
