"""The client's address behind proxies."""

import pytest

from edge.http.trusted_proxies import TrustedProxies, parse_address

NETWORKS = ("10.0.0.0/8", "fd00::/8")
PEER = "10.0.0.1"


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, 10.0.0.1, 10.0.0.2", "203.0.113.9"),
        ("203.0.113.9,fd00::7, [fd00::8]:443", "203.0.113.9"),
        ("10.0.0.3, 10.0.0.1", "10.0.0.3"),
        ("", PEER),
        (" , ", PEER),
        ("203.0.113.9, ", "203.0.113.9"),
        ("198.51.100.1, unknown", PEER),
        ("198.51.100.1, unknown, 10.0.0.2", "10.0.0.2"),
        ("198.51.100.1, 203.0.113.9:41000", "203.0.113.9"),
    ],
)
def test_client_is_the_rightmost_untrusted_hop(forwarded: str, client: str) -> None:
    """R7: hops left of it may be invented; one that is no address is the proxy's."""
    assert TrustedProxies(NETWORKS).client(PEER, [forwarded]) == client


def test_client_of_an_untrusted_peer_is_the_peer() -> None:
    """R7: a client cannot name its own address."""
    proxies = TrustedProxies(NETWORKS)
    assert proxies.client("192.0.2.1", ["203.0.113.9"]) == "192.0.2.1"
    assert TrustedProxies(()).client(PEER, ["203.0.113.9"]) == PEER


def test_client_of_a_call_in_process_is_named_by_it() -> None:
    """Without a peer the last hop is the one that the edge saw."""
    proxies = TrustedProxies(NETWORKS)
    assert proxies.client("", ["203.0.113.9, 192.0.2.1"]) == "192.0.2.1"
    assert proxies.client("", ["203.0.113.9, 10.0.0.1"]) == "203.0.113.9"
    assert proxies.client("", []) == ""


def test_forwarded_lines_are_joined_in_order() -> None:
    """RFC 9110 5.3: several lines are one list."""
    lines = ["198.51.100.1", "203.0.113.9, 10.0.0.2", "10.0.0.3"]
    assert TrustedProxies(NETWORKS).client(PEER, lines) == "203.0.113.9"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        (" 203.0.113.9 ", "203.0.113.9"),
        ("203.0.113.9:41000", "203.0.113.9"),
        ('"203.0.113.9"', "203.0.113.9"),
        ('"203.0.113.9:41000"', "203.0.113.9"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ('"[2001:db8::1]:443"', "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:1", "fe80::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("[::ffff:cb00:7109]:1", "203.0.113.9"),
        ("", ""),
        ("unknown", ""),
        ("_hidden", ""),
        ("203.0.113", ""),
        ("203.0.113.009", ""),
        ("203.0.113.9:x", ""),
        ("203.0.113.9:", ""),
        ("٢٠٣.0.113.9", ""),
        ("203.0.113.9:٤", ""),
        ('"', ""),
        ("[2001:db8::1", ""),
        ("for=203.0.113.9", ""),
    ],
)
def test_hop_is_parsed_to_one_spelling(text: str, address: str) -> None:
    """Ports, quotes, brackets, zones and mapped addresses make no new client."""
    assert parse_address(text) == address


@pytest.mark.parametrize("network", ["10.0.0.0/8", "::ffff:10.0.0.0/104"])
@pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1", "::FFFF:a00:1"])
def test_mapped_addresses_are_unwrapped_on_both_sides(network: str, peer: str) -> None:
    """A socket that listens on [::] names IPv4 peers by mapped addresses."""
    proxies = TrustedProxies([network])
    assert proxies.covers(peer)
    assert proxies.client(peer, ["203.0.113.9"]) == "203.0.113.9"
    assert not proxies.covers("::ffff:11.0.0.1")


def test_invalid_network_is_refused() -> None:
    """An operator's typing error must not trust or distrust anybody unseen."""
    with pytest.raises(ValueError, match="10"):
        TrustedProxies(["10.0.0.0/33"])
