"""Which client addresses a limit counts together."""

import pytest

from server.domain.limits import address_key


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("unix", "unix", True),
    ],
)
def test_address_key_is_ipv4_address_or_ipv6_64(
    one: str, other: str, same: bool
) -> None:
    """R5: a customer's whole /64 counts as one."""
    assert (address_key(one) == address_key(other)) is same
