"""Recovery codes: for the day on which every other factor is lost.

Ten characters of 32 are 50 bits. They are stored as MACs under a key derived from
SECRET_KEY, so that a copy of the database alone does not reveal them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import choice

from server.domain.credentials.secret_key import Mac
from server.domain.factors.readable_codes import ALPHABET, normalized

CODES = 10
_LENGTH = 10


@dataclass(frozen=True, slots=True)
class RecoveryCodes:
    """Creates codes and the hashes that are stored of them, without I/O."""

    mac: Mac

    def create(self) -> Sequence[str]:
        """Return ten new codes, such as `7bq2m-x0w4d`."""
        codes = [
            "".join(choice(ALPHABET) for _ in range(_LENGTH)) for _ in range(CODES)
        ]
        return [f"{code[:5]}-{code[5:]}" for code in codes]

    def digest(self, user_id: int, code: str) -> bytes:
        """Return what is stored of a code of this user."""
        return self.mac.sign(_message(user_id, code))

    def digests(self, user_id: int, code: str) -> Sequence[bytes]:
        """Return what may be stored of a code, under each SECRET_KEY."""
        return self.mac.sign_all(_message(user_id, code))


def _message(user_id: int, code: str) -> bytes:
    return f"{user_id} {normalized(code)}".encode(errors="replace")
