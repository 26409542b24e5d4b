"""Recovery codes: for the day on which every other factor is lost.

Ten characters of 32 are 50 bits. They are stored as MACs under a key derived from
SECRET_KEY, so that a copy of the database alone does not reveal them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import choice

from server.domain.credentials.secret_key import Mac

CODES = 10
# Crockford's base32: no letter that looks like another character
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 10
_ALIASES = str.maketrans({"o": "0", "i": "1", "l": "1", " ": "", "-": ""})


@dataclass(frozen=True, slots=True)
class RecoveryCodes:
    """Creates codes and the hashes that are stored of them, without I/O."""

    mac: Mac

    def create(self) -> Sequence[str]:
        """Return ten new codes, such as `7bq2m-x0w4d`."""
        codes = [
            "".join(choice(_ALPHABET) for _ in range(_LENGTH)) for _ in range(CODES)
        ]
        return [f"{code[:5]}-{code[5:]}" for code in codes]

    def digest(self, user_id: int, code: str) -> bytes:
        """Return what is stored of a code of this user."""
        return self.mac.sign(_message(user_id, code))

    def digests(self, user_id: int, code: str) -> Sequence[bytes]:
        """Return what may be stored of a code, under each SECRET_KEY."""
        return self.mac.sign_all(_message(user_id, code))


def _message(user_id: int, code: str) -> bytes:
    normalized = code.lower().translate(_ALIASES)
    return f"{user_id} {normalized}".encode(errors="replace")
