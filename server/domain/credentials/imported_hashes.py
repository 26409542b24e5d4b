"""Password hashes made elsewhere: which are taken, told by their parameters alone.

A hash is verified at every log-in until its owner's first one here, so it must not
cost what would stop the others: at most four times ours. The time that argon2 takes
grows with memory x passes, that of bcrypt doubles with each round; bcrypt of 12
rounds was measured at 10.7 times ours, so that 10 rounds are the most.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode

from server.domain.errors import Violation

KIB = 1024
MEMORY_KIB = 19 * KIB
PASSES = 2
MAX_RELATIVE_COST = 4.0  # times ours
BCRYPT_12 = 10.7  # times ours
MOST_LANES = 4  # each is a thread of its own, beside those of the pool

_ARGON2ID = re.compile(
    r"\$argon2id\$v=19\$m=([1-9]\d{0,8}),t=([1-9]\d{0,8}),p=([1-9]\d?)"
    r"\$([A-Za-z0-9+/]{11,64})\$([A-Za-z0-9+/]{22,86})"
)
# the last characters of salt and digest hold 2 and 4 spare bits, which are zero
_BCRYPT = re.compile(
    r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu]"
    r"[./A-Za-z0-9]{30}[.CGKOSWaeimquy26]"
)
_BCRYPT_ROUNDS = range(4, 32)


def hash_faults(hashed: str, field: str) -> list[Violation]:
    """Give the rules that a hash made elsewhere breaks."""
    cost = _cost(hashed)
    if cost is None:
        told = "must be a whole hash of argon2id (version 19) or bcrypt"
        return [Violation(field, told, "password_hash.format")]
    if cost > MAX_RELATIVE_COST:
        limit = f"{MAX_RELATIVE_COST:g} times the cost of the service's own hashes"
        told = f"must not cost more than {limit}"
        return [Violation(field, told, "password_hash.cost")]
    return []


def is_bcrypt(hashed: str) -> bool:
    """Tell a hash of bcrypt from any other."""
    return hashed.startswith("$2")


def _cost(hashed: str) -> float | None:
    """Give what verifying costs, times ours; None for what is no hash of these."""
    if found := _BCRYPT.fullmatch(hashed):
        rounds = int(found[1])
        return BCRYPT_12 * 2.0 ** (rounds - 12) if rounds in _BCRYPT_ROUNDS else None
    found = _ARGON2ID.fullmatch(hashed)
    if found is None or not (_canonical(found[4]) and _canonical(found[5])):
        return None
    memory, passes, lanes = map(int, found.group(1, 2, 3))
    if memory < 8 * lanes or lanes > MOST_LANES:  # RFC 9106 3.1
        return None
    return memory * passes / (MEMORY_KIB * PASSES)


def _canonical(text: str) -> bool:
    """Tell whether it is base64 without padding, and the only spelling of its bytes."""
    if len(text) % 4 == 1:
        return False
    raw = b64decode(text + "=" * (-len(text) % 4))
    return b64encode(raw).decode().rstrip("=") == text
