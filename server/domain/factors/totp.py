"""Codes of authenticator apps (TOTP, RFC 6238): six digits, 30 seconds, SHA-1.

Apps support nothing else reliably. Secrets are stored encrypted, under a key derived
from SECRET_KEY.
"""

from __future__ import annotations

from dataclasses import dataclass
from secrets import token_bytes

from cryptography.fernet import InvalidToken, MultiFernet
from passlib.exc import TokenError
from passlib.totp import TOTP

from server.domain.clock import Clock

SECRET_BYTES = 20  # as long as the hash (RFC 4226 4, R6)
STEP_SECONDS = 30
DIGITS = 6


@dataclass(frozen=True, slots=True)
class TotpSecret:
    """A new secret: encrypted, in base32, and as the URI that apps read."""

    encrypted: bytes
    base32: str
    uri: str


@dataclass(frozen=True, slots=True)
class Totp:
    """Creates secrets and verifies codes, without I/O; `issuer` is shown in apps."""

    cipher: MultiFernet
    issuer: str
    clock: Clock

    def create(self, username: str) -> TotpSecret:
        """Return a new secret for an account."""
        key = token_bytes(SECRET_BYTES)
        totp = _totp(key)
        uri = totp.to_uri(label=username, issuer=self.issuer)
        return TotpSecret(self.cipher.encrypt(key), totp.base32_key, uri)

    def matching_step(self, encrypted: bytes, code: str, last_step: int) -> int | None:
        """Return the time step of a code; None if the code is wrong or was used.

        Accepts the present step and its two neighbours, for clocks that differ and
        people who type slowly, but none up to `last_step`.
        """
        try:
            key = self.cipher.decrypt(encrypted)
            match = _totp(key).match(
                code,
                time=self.clock().timestamp(),
                window=STEP_SECONDS,
                last_counter=last_step,
            )
        except (TokenError, InvalidToken):
            return None
        step = int(match.counter)
        return step if step > last_step else None

    def reencrypted(self, encrypted: bytes) -> bytes:
        """Return a secret encrypted under the current SECRET_KEY."""
        return self.cipher.rotate(encrypted)


def _totp(key: bytes) -> TOTP:
    return TOTP(key, format="raw", digits=DIGITS, period=STEP_SECONDS, alg="sha1")
