"""Limits of open HTTP connections (R35)."""

import asyncio
import json

import pytest

from edge.connections import (
    MAX_CONNECTIONS_PER_ADDRESS,
    ConnectionLimits,
)
from edge.http.trusted_proxies import TrustedProxies
from edge.listener import limited_protocol
from tests.edge.service import FakePort
from tests.edge.shop import item
from tests.edge.test_listener import PLAIN, listening

PROXIES = TrustedProxies(["8.8.4.0/24"])


def admitted(limits: ConnectionLimits, address: str, count: int) -> int:
    """Return how many of these connections are admitted."""
    return sum(limits.admit(address) for _ in range(count))


@pytest.mark.parametrize(
    ("address", "limit"),
    [
        ("8.8.8.8", 3),
        ("::ffff:8.8.8.8", 3),
        ("2a00:1450:4001:80b::200e", 3),
        ("127.0.0.1", 9),  # may be a proxy, as each private address
        ("10.1.2.3", 9),
        ("8.8.4.4", 9),  # a trusted proxy
        ("", 9),  # a Unix socket
    ],
)
def test_connections_of_one_address_are_bounded(address: str, limit: int) -> None:
    """A closed connection makes room; another address has its own limit."""
    limits = ConnectionLimits(PROXIES, max_connections=20, max_per_address=3)
    assert admitted(limits, address, 9) == limit
    assert admitted(limits, "9.9.9.9", 2) == 2
    limits.release(address, admitted=True)
    assert limits.admit(address)
    assert limits.open == limit + 2


def test_connections_of_an_ipv6_network_are_counted_together() -> None:
    """A client of IPv6 usually has a /64."""
    limits = ConnectionLimits(PROXIES, max_per_address=3)
    for host in range(3):
        assert limits.admit(f"2a00:1450:4001:80b::{host}")
    assert not limits.admit("2a00:1450:4001:80b:ffff::1")
    assert limits.admit("2a00:1450:4001:80c::1")


def test_closed_connections_leave_nothing_behind() -> None:
    limits = ConnectionLimits(PROXIES, max_connections=5)
    for _ in range(2):
        assert admitted(limits, "8.8.8.8", 7) == 5
        for number in range(7):
            limits.release("8.8.8.8", admitted=number < 5)
    assert (limits.open, limits.refused) == (0, 0)
    assert not limits._by_address


def test_one_address_cannot_use_up_all_connections() -> None:
    limits = ConnectionLimits(PROXIES)
    assert admitted(limits, "8.8.8.8", 10_000) == MAX_CONNECTIONS_PER_ADDRESS
    assert limits.admit("9.9.9.9")


async def test_connection_beyond_the_limit_is_answered_429(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """R35: at once, with Retry-After, logged once; others are served, and later all."""
    limits = ConnectionLimits(PROXIES, max_connections=2)
    observed: list[tuple[str, str, int]] = []

    def observe(method: str, route: str, status: int, _: float) -> None:
        observed.append((method, route, status))

    protocol = limited_protocol(limits, observe)
    async with listening(FakePort(item(id=1)), protocol) as number:
        opened = [await asyncio.open_connection("127.0.0.1", number) for _ in range(4)]
        for reader, writer in opened[2:]:
            writer.write(PLAIN)
            async with asyncio.timeout(5):
                head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 429 ")
            assert b"retry-after: 1" in head
            error = json.loads(body)
            assert (error["errorCode"], error["code"]) == ("OVERLOADED", 8)
            writer.close()
        for reader, writer in opened[:2]:
            writer.write(PLAIN)
            assert (await reader.readline()).split()[1] == b"200"
            writer.close()
        async with asyncio.timeout(5):
            while limits.open:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        writer.write(PLAIN)
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()
    assert caplog.text.count("connections are refused") == 1
    assert observed == [("_OTHER", "_OTHER", 429)] * 2


async def test_connections_that_wait_to_be_refused_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R35: beyond them a connection is closed without an answer."""
    monkeypatch.setattr("edge.listener.MAX_REFUSED_CONNECTIONS", 2)
    limits = ConnectionLimits(PROXIES, max_connections=0)
    async with listening(FakePort(), limited_protocol(limits)) as number:
        opened = [await asyncio.open_connection("127.0.0.1", number) for _ in range(5)]
        async with asyncio.timeout(5):
            assert [await reader.read(-1) for reader, _ in opened] == [b""] * 5
        assert limits.refused == 0
        for _, writer in opened:
            writer.close()
