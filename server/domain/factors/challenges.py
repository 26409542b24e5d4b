"""Challenges: what a client begins, and completes once, within minutes.

A second step of a log-in, a passkey's ceremony, a mailed code, and a log-in with
another provider are all challenges. The client gets a token: an id and 256 random
bits, of which the store keeps the hash, so that a leaked row is of no use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from hashlib import sha256
from ipaddress import ip_address, ip_network
from secrets import token_bytes
from typing import Any, Protocol
from uuid import UUID, uuid4

from server.domain.clock import Clock
from server.domain.credentials import base64url

MAX_ATTEMPTS = 5
LIFETIME = timedelta(minutes=5)
_ID_BYTES, _SECRET_BYTES = 16, 32
_PREFIX_LENGTHS = {4: 24, 6: 48}


class ChallengeKind(IntEnum):
    """What a challenge is for; it is of no use for anything else."""

    LOG_IN = 1  # waits for a second factor
    PASSKEY_CREATION = 2
    PASSKEY_LOG_IN = 3
    LOGIN_CODE = 4
    FEDERATED_LOG_IN = 5


@dataclass(frozen=True, slots=True)
class Challenge:
    """A stored challenge.

    `user_id` is 0 if the account is not known yet; `version` is the account's when the
    challenge began. `network` and `device` are the client's, "" for any client. `data`
    is JSON. `attempts` includes the present one.
    """

    id: UUID
    kind: ChallengeKind
    secret_hash: bytes = field(repr=False)
    created_at: datetime
    expires_at: datetime
    user_id: int = 0
    version: int = 0
    network: str = ""
    device: str = ""
    attempts: int = 0
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Client:
    """Who begins a challenge: nobody else can complete it."""

    address: str
    device: str

    @property
    def network(self) -> str:
        """The network that the address may change within: a /24, or a /48 of IPv6."""
        try:
            address = ip_address(self.address)
        except ValueError:
            return self.address  # a socket's path
        mapped = getattr(address, "ipv4_mapped", None)
        address = mapped or address
        prefix = _PREFIX_LENGTHS[address.version]
        return str(ip_network((address, prefix), strict=False))


class ChallengeStore(Protocol):
    """Stores challenges."""

    async def add(self, challenge: Challenge) -> None:
        """Write a new challenge."""

    async def attempt(
        self, challenge_id: UUID, kind: ChallengeKind, secret_hash: bytes, now: datetime
    ) -> Challenge | None:
        """Count an attempt, and return the challenge with it.

        None, and nothing is counted, if there is no such challenge, if it has expired,
        or if MAX_ATTEMPTS were made. Attempts at the same time are all counted.
        """

    async def consume(self, challenge_id: UUID) -> bool:
        """Delete a challenge; True for the first call only."""


@dataclass(frozen=True, slots=True)
class Challenges:
    """The rules of challenges."""

    store: ChallengeStore
    clock: Clock

    async def begin(
        self,
        kind: ChallengeKind,
        client: Client | None = None,
        *,
        user_id: int = 0,
        version: int = 0,
        data: Mapping[str, Any] | None = None,
        lifetime: timedelta = LIFETIME,
    ) -> str:
        """Store a new challenge, and return its token.

        Without `client`, whoever has the token may complete it.
        """
        challenge_id, secret, now = uuid4(), token_bytes(_SECRET_BYTES), self.clock()
        await self.store.add(
            Challenge(
                id=challenge_id,
                kind=kind,
                secret_hash=_digest(secret),
                created_at=now,
                expires_at=now + lifetime,
                user_id=user_id,
                version=version,
                network=client.network if client else "",
                device=client.device if client else "",
                data=data or {},
            )
        )
        return base64url.encode(challenge_id.bytes + secret)

    async def attempt(
        self, kind: ChallengeKind, token: str, client: Client | None = None
    ) -> Challenge | None:
        """Count an attempt to complete a challenge, and return the challenge.

        None if the token was not issued for this, has expired, was used, allows no more
        attempts or belongs to another client. The caller does not learn which.
        """
        try:
            raw = token_bytes_of(token)
        except ValueError:
            return None
        challenge_id, secret = UUID(bytes=raw[:_ID_BYTES]), raw[_ID_BYTES:]
        challenge = await self.store.attempt(
            challenge_id, kind, _digest(secret), self.clock()
        )
        if challenge is None or not _is_of(challenge, client):
            return None
        return challenge

    async def consume(self, challenge: Challenge) -> bool:
        """Use up a challenge; True for the first call only."""
        return await self.store.consume(challenge.id)


def token_bytes_of(token: str) -> bytes:
    """Return the bytes of a token, which a passkey signs. Raises ValueError."""
    raw = base64url.decode(token)
    if len(raw) != _ID_BYTES + _SECRET_BYTES:
        raise ValueError("not a challenge token")
    return raw


def id_of(token: str) -> UUID:
    """Return the id of the challenge that a token belongs to. Raises ValueError."""
    return UUID(bytes=token_bytes_of(token)[:_ID_BYTES])


def _is_of(challenge: Challenge, client: Client | None) -> bool:
    if not challenge.network:
        return True
    return client is not None and (client.network, client.device) == (
        challenge.network,
        challenge.device,
    )


def _digest(secret: bytes) -> bytes:
    return sha256(secret).digest()
