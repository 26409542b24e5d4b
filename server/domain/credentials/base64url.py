"""Base64url without padding (RFC 4648 5), in one spelling per value."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode


def encode(raw: bytes) -> str:
    """Return the text of bytes."""
    return urlsafe_b64encode(raw).decode().rstrip("=")


def decode(text: str) -> bytes:
    """Return the bytes of a text that `encode` can return.

    Raises ValueError for any other text: Python's decoder skips foreign characters
    and ignores spare bits, so that many texts would mean the same bytes.
    """
    raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode(raw) != text:
        raise ValueError("not canonical base64url")
    return raw
