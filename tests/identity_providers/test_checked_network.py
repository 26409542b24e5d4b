"""Which addresses are connected to: the checked ones, and no others."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

import httpcore2
import pytest

from server.identity_providers.checked_network import CheckedNetwork, is_public


class RecordingNetwork(httpcore2.AsyncMockBackend):
    """Notes where connections go; the addresses in `away` do not respond."""

    def __init__(self, *away: str) -> None:
        super().__init__([])
        self.away = away
        self.addresses: list[str] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        self.addresses.append(host)
        if host in self.away:
            raise httpcore2.ConnectError
        return await super().connect_tcp(host, port)


def resolving(*answers: Sequence[str]) -> tuple[RecordingNetwork, CheckedNetwork]:
    """Return a network whose resolver gives these answers, one after the other."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("idp.test", 443)
        return left.pop(0)

    network = RecordingNetwork("8.8.4.4")
    return network, CheckedNetwork(is_public, resolve, network)


async def test_connection_goes_to_the_checked_address() -> None:
    """DNS rebinding: a second answer is not asked for."""
    network, checked = resolving(["8.8.8.8"], ["127.0.0.1"])
    await checked.connect_tcp("idp.test", 443)
    assert network.addresses == ["8.8.8.8"]
    with pytest.raises(httpcore2.ConnectError, match=r"has the address 127\.0\.0\.1"):
        await checked.connect_tcp("idp.test", 443)
    assert network.addresses == ["8.8.8.8"]


async def test_one_private_address_refuses_the_host() -> None:
    network, checked = resolving(["8.8.8.8", "10.0.0.1"])
    with pytest.raises(httpcore2.ConnectError):
        await checked.connect_tcp("idp.test", 443)
    assert network.addresses == []


async def test_next_address_is_tried() -> None:
    network, checked = resolving(["8.8.4.4", "8.8.8.8"], ["8.8.4.4"], [])
    await checked.connect_tcp("idp.test", 443)
    assert network.addresses == ["8.8.4.4", "8.8.8.8"]
    for _ in range(2):
        with pytest.raises(httpcore2.ConnectError):
            await checked.connect_tcp("idp.test", 443)


@pytest.mark.parametrize(
    "host", ["no-such-host.invalid", "a" * 64 + ".test", "x..y", ""]
)
async def test_unknown_host_is_an_error_of_the_connection(host: str) -> None:
    checked = CheckedNetwork(lambda address: False)
    with pytest.raises(httpcore2.ConnectError):
        await checked.connect_tcp(host, 443)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.0.2.1", False),
        ("224.0.0.251", False),
        ("233.1.1.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:1:2:3:4:5:6", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ip_address(address)) is public
