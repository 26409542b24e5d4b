"""Password hashes made by other systems: which ones are accepted, by their parameters.

The cost of a hash is relative to the service's own hashes (argon2id, 19 MiB, 2
passes: 21 to 26 ms). The time of argon2 grows with memory x passes; the time of
bcrypt doubles with each round, and bcrypt with 12 rounds was measured at 10.7 times
the service's own. A limit on the cost bounds how long one log-in can occupy a thread
of the hashing pool, until the owner's first log-in replaces the hash.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode

from server.domain.errors import Violation

KIB = 1024
OWN_MEMORY_KIB = 19 * KIB
OWN_PASSES = 2
BCRYPT_12_COST = 10.7
MAX_MEMORY_KIB = 256 * KIB  # per thread of the pool, whatever the cost allows
MAX_LANES = 4  # each is a thread of its own, beside those of the pool

_ARGON2ID = re.compile(
    r"\$argon2id\$v=19\$m=([1-9][0-9]{0,8}),t=([1-9][0-9]{0,8}),p=([1-9][0-9]?)"
    r"\$([A-Za-z0-9+/]{11,64})\$([A-Za-z0-9+/]{22,86})"
)
# the last characters of salt and digest hold 2 and 4 spare bits, which are zero
_BCRYPT = re.compile(
    r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu]"
    r"[./A-Za-z0-9]{30}[.CGKOSWaeimquy26]"
)
_BCRYPT_ROUNDS = range(4, 32)


def hash_violations(hashed: str, field: str, max_cost: int) -> list[Violation]:
    """Return the rules that an imported hash breaks.

    `max_cost` is a multiple of the cost of the service's own hashes.
    """
    cost = _cost(hashed)
    if cost is None:
        description = "must be a complete hash of argon2id (version 19) or bcrypt"
        return [Violation(field, description, "password_hash.format")]
    if cost > max_cost:
        description = (
            f"must cost at most {max_cost} times as much as the service's own hashes"
        )
        return [Violation(field, description, "password_hash.cost")]
    return []


def is_bcrypt(hashed: str) -> bool:
    """Return whether a hash is one of bcrypt."""
    return hashed.startswith("$2")


def _cost(hashed: str) -> float | None:
    """Return the relative cost of verifying a hash; None if it is not acceptable."""
    if match := _BCRYPT.fullmatch(hashed):
        rounds = int(match[1])
        if rounds not in _BCRYPT_ROUNDS:
            return None
        return BCRYPT_12_COST * 2.0 ** (rounds - 12)
    match = _ARGON2ID.fullmatch(hashed)
    if match is None or not (_canonical(match[4]) and _canonical(match[5])):
        return None
    memory, passes, lanes = map(int, match.group(1, 2, 3))
    if memory < 8 * lanes or lanes > MAX_LANES:  # RFC 9106 3.1
        return None
    if memory > MAX_MEMORY_KIB:
        return float("inf")
    return memory * passes / (OWN_MEMORY_KIB * OWN_PASSES)


def _canonical(text: str) -> bool:
    """Return whether a text is base64 without padding, in its only spelling."""
    if len(text) % 4 == 1:
        return False
    raw = b64decode(text + "=" * (-len(text) % 4))
    return b64encode(raw).decode().rstrip("=") == text
