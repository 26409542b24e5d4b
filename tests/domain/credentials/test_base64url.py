"""Base64url texts: one spelling per value."""

import pytest

from server.domain.credentials import base64url


@pytest.mark.parametrize("raw", [b"", b"\0", b"\xff\xfe\xfd", bytes(range(256))])
def test_base64url_round_trip(raw: bytes) -> None:
    """Every value has a text without padding, in the URL-safe alphabet."""
    text = base64url.encode(raw)
    assert base64url.decode(text) == raw
    assert not set(text) & set("+/=")


@pytest.mark.parametrize(
    "text",
    ["AA==", "AA\n", " AA", "A A", "AB", "A", "AA!", "+/+/", "\u0665\u0665", "\ud800"],
)
def test_base64url_other_spellings_are_refused(text: str) -> None:
    """Padding, white space, spare bits, other alphabets and digits: ValueError."""
    with pytest.raises(ValueError, match=r"."):
        base64url.decode(text)
