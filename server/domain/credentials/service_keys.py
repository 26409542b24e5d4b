"""Keys of services: shown once when they are created, stored as hashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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

    def is_valid(self, now: datetime) -> bool:
        """Return whether the key has not expired."""
        return self.expires_at is None or self.expires_at > now


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

    def named(self, name: str, now: datetime) -> ServiceKey | None:
        """Return the newest valid key of a name, without I/O, and record its use."""


def key_digest(secret: str) -> bytes:
    """Return the hash of a key; 256 random bits need no slow hash."""
    return sha256(secret.encode(errors="replace")).digest()


@dataclass(slots=True)
class ServiceKeys:
    """The rules of service keys.

    `certificates` leads from a subject alternative name of a client certificate (a DNS
    name or a URI) to the name of the service key that the certificate replaces.
    """

    store: ServiceKeyStore
    clock: Clock
    certificates: Mapping[str, str] = field(default_factory=dict)
    refused_certificates: int = 0  # calls that a client certificate did not authorize

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
        if key is None or not key.is_valid(self.clock()):
            cause = "the service key is unknown, revoked or expired"
            raise TokenInvalid(cause, f"{cause}: ask an admin for a new key")
        return key

    def certified_name(self, alternative_names: Sequence[str]) -> str:
        """Return the name of the key that a certificate replaces; "" if none.

        Raises TokenInvalid if it replaces more than one key.
        """
        matched = {self.certificates.get(name, "") for name in alternative_names} - {""}
        if len(matched) > 1:
            raise self._refused(
                "the client certificate matches several service keys",
                "use a certificate that has only one of the names",
            )
        return matched.pop() if matched else ""

    def certified(self, name: str) -> ServiceKey:
        """Return the valid key that a certificate replaces. Raises TokenInvalid."""
        key = self.store.named(name, self.clock())
        if key is None:
            raise self._refused(
                "the service key of the client certificate is unknown, revoked or "
                "expired",
                "ask an admin for a new key",
            )
        return key

    def check_certified(self, key: ServiceKey, name: str) -> None:
        """Raise TokenInvalid if a key is not of the service of the certificate."""
        if name and key.name != name:
            raise self._refused(
                "the service key does not match the client certificate",
                "send the key of the same service, or no authorization header",
            )

    def _refused(self, cause: str, advice: str) -> TokenInvalid:
        self.refused_certificates += 1
        return TokenInvalid(cause, f"{cause}: {advice}")
