"""Recovery codes: for the day on which every other factor is lost.

24 characters of 32 are 120 bits, so that a hash without a key reveals none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from secrets import choice

CODES = 10
# Crockford's base32: no letter that looks like another character
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_GROUPS, _GROUP_LENGTH = 6, 4
_ALIASES = str.maketrans({"o": "0", "i": "1", "l": "1", " ": "", "-": ""})


def create_codes() -> Sequence[str]:
    """Return ten new codes, such as `7bq2-mx0w-4dth-1yk9-vr3e-h5cs`."""
    return ["-".join(_group() for _ in range(_GROUPS)) for _ in range(CODES)]


def digest(user_id: int, code: str) -> bytes:
    """Return what is stored of a code of this user, in whatever spelling it is."""
    normalized = code.lower().translate(_ALIASES)
    return sha256(f"{user_id} {normalized}".encode(errors="replace")).digest()


def _group() -> str:
    return "".join(choice(_ALPHABET) for _ in range(_GROUP_LENGTH))
