"""Keys of services: shown once when they are created, stored as hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from secrets import token_urlsafe
from typing import Protocol

from server.domain.clock import Clock
from server.domain.errors import ServiceKeyNotFound, TokenInvalid

PREFIX = "blatam_sk_"


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A key without its secret; `expires_at` is None if it does not expire."""

    id: int
    name: str
    private_fields: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class ServiceKeyStore(Protocol):
    """Stores keys, and holds all of them in this process."""

    async def add(
        self,
        name: str,
        digest: bytes,
        private_fields: bool,
        now: datetime,
        expires_at: datetime | None,
    ) -> ServiceKey:
        """Write a new key."""

    async def all(self) -> Sequence[ServiceKey]:
        """Return the keys that were not revoked, by id."""

    async def revoke(self, key_id: int, now: datetime) -> bool:
        """Revoke a key; return whether it existed."""

    def known(self, digest: bytes) -> ServiceKey | None:
        """Return the key with this hash, without I/O, and record its use."""


def key_digest(secret: str) -> bytes:
    """Return the hash of a key; 256 random bits need no slow hash."""
    return sha256(secret.encode(errors="replace")).digest()


@dataclass(frozen=True, slots=True)
class ServiceKeys:
    """The rules of service keys."""

    store: ServiceKeyStore
    clock: Clock

    async def create(
        self, name: str, private_fields: bool, expires_at: datetime | None
    ) -> tuple[ServiceKey, str]:
        """Return a new key, and its secret, which is not stored."""
        secret = PREFIX + token_urlsafe(32)
        key = await self.store.add(
            name, key_digest(secret), private_fields, self.clock(), expires_at
        )
        return key, secret

    async def list(self) -> Sequence[ServiceKey]:
        """Return the keys that were not revoked, by id."""
        return await self.store.all()

    async def revoke(self, key_id: int) -> None:
        """Revoke a key. Raises ServiceKeyNotFound."""
        if not await self.store.revoke(key_id, self.clock()):
            raise ServiceKeyNotFound(key_id)

    def verify(self, secret: str) -> ServiceKey:
        """Return the valid key with this secret. Raises TokenInvalid. No I/O."""
        key = self.store.known(key_digest(secret))
        if key is None or (key.expires_at and key.expires_at <= self.clock()):
            cause = "the service key is unknown, revoked or expired"
            raise TokenInvalid(cause, f"{cause}: ask an admin for a new key")
        return key
