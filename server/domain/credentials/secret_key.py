"""Keys derived from SECRET_KEY, one for each purpose; never the secret itself.

Each purpose has its own key, so that a leaked key or a signature is of no use for
another purpose (HKDF, RFC 5869). SECRET_KEY_PREVIOUS still verifies and decrypts, so
that the secret can be changed while the service runs.
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
    """HMAC-SHA256 with the keys of one purpose; the first signs, all verify."""

    keys: tuple[bytes, ...]

    def sign(self, message: bytes) -> bytes:
        """Return the 32-byte tag of `message`."""
        return hmac.digest(self.keys[0], message, hashlib.sha256)

    def sign_all(self, message: bytes) -> tuple[bytes, ...]:
        """Return the tag of `message` under each key, the current key first."""
        return tuple(hmac.digest(key, message, hashlib.sha256) for key in self.keys)

    def verify(self, message: bytes, tag: bytes) -> bool:
        """Return whether one of the keys made `tag`, of which 16 bytes are enough."""
        return len(tag) >= 16 and any(
            hmac.compare_digest(full_tag[: len(tag)], tag)
            for full_tag in self.sign_all(message)
        )


@dataclass(frozen=True, slots=True)
class SecretKey:
    """The operator's secret, current and previous."""

    current: str
    previous: str | None = None

    def _all(self) -> tuple[str, ...]:
        return (self.current, self.previous) if self.previous else (self.current,)

    def mac(self, purpose: str) -> Mac:
        """Return the MAC of one purpose."""
        return Mac(tuple(_derive(secret, purpose) for secret in self._all()))

    def cipher(self, purpose: str) -> MultiFernet:
        """Return the encryption of one purpose; it encrypts with the current key."""
        keys = [_derive(secret, purpose) for secret in self._all()]
        return MultiFernet([Fernet(urlsafe_b64encode(key)) for key in keys])
