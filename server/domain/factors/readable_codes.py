"""Codes that people copy: Crockford's base32, without letters that look alike."""

from __future__ import annotations

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_BITS = 5  # of each character
_ALIASES = str.maketrans({"o": "0", "i": "1", "l": "1", " ": "", "-": ""})


def encode(raw: bytes, length: int) -> str:
    """Return the first bits of `raw` as a code of this length."""
    number = int.from_bytes(raw) >> (8 * len(raw) - _BITS * length)
    shifts = range(_BITS * (length - 1), -1, -_BITS)
    return "".join(ALPHABET[number >> shift & 31] for shift in shifts)


def normalized(code: str) -> str:
    """Return a code without regard to case, spaces, hyphens and similar letters."""
    return code.lower().translate(_ALIASES)
