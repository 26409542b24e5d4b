"""Keys derived from SECRET_KEY, one for each purpose; never the secret itself.

A purpose gets its own key, so that what one of them leaks or signs is worth
nothing for another (HKDF, RFC 5869). SECRET_KEY_PREVIOUS still verifies and
decrypts, so that the secret can be changed while the service runs.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from dataclasses import dataclass

from cryptography.fernet import Fernet, MultiFernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def _derive(secret: str, purpose: str) -> bytes:
    hkdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose.encode())
    return hkdf.derive(secret.encode())


@dataclass(frozen=True, slots=True)
class Mac:
    """HMAC-SHA256 under one purpose's keys; the first signs, all verify."""

    keys: tuple[bytes, ...]

    def sign(self, message: bytes) -> bytes:
        """Give the 32 bytes that belong to `message`."""
        return hmac.digest(self.keys[0], message, hashlib.sha256)

    def sign_all(self, message: bytes) -> tuple[bytes, ...]:
        """Give what each key, the present one first, makes of `message`."""
        return tuple(hmac.digest(key, message, hashlib.sha256) for key in self.keys)

    def verify(self, message: bytes, tag: bytes) -> bool:
        """Tell whether one of the keys made `tag`, of which 16 bytes suffice."""
        return len(tag) >= 16 and any(
            hmac.compare_digest(made[: len(tag)], tag)
            for made in self.sign_all(message)
        )


@dataclass(frozen=True, slots=True)
class SecretKey:
    """The operator's secret, present and previous."""

    present: str
    previous: str | None = None

    def _all(self) -> tuple[str, ...]:
        return (self.present, self.previous) if self.previous else (self.present,)

    def mac(self, purpose: str) -> Mac:
        """Give the MAC of one purpose."""
        return Mac(tuple(_derive(secret, purpose) for secret in self._all()))

    def box(self, purpose: str) -> MultiFernet:
        """Give the encryption of one purpose; it encrypts under the present key."""
        keys = [_derive(secret, purpose) for secret in self._all()]
        return MultiFernet([Fernet(urlsafe_b64encode(key)) for key in keys])
