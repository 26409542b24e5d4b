"""Rotation of the keys that sign access tokens: next, active, retired, deleted.

A key is published as the next one until every verifier has seen it. Then it signs. Then
it is kept until every token that it signed has expired (ASVS 13.3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from server.domain.clock import Clock
from server.domain.credentials.tokens import LEEWAY, LIFETIME, KeyState

# verifiers cache the key set for 300 s, processes poll every 30 s, and clocks differ
MIN_PUBLISHED = timedelta(seconds=300 + 30) + LEEWAY
# a process that learns of a rotation late continues to sign for a while
EXPIRED_AFTER = LIFETIME + LEEWAY + timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A signing key without its secret."""

    kid: str
    state: KeyState
    created_at: datetime


class SigningKeyStore(Protocol):
    """Stores the keys that all processes share."""

    async def rotate(self, published_before: datetime | None) -> Sequence[KeyInfo]:
        """Make the next key the active one, in every process; return the keys.

        The newest is first. Raises NextKeyTooNew if the next key was made after
        `published_before`.
        """

    async def all(self) -> Sequence[KeyInfo]:
        """Return the keys, the newest first."""


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The rules of rotation."""

    store: SigningKeyStore
    clock: Clock

    async def rotate(self, *, force: bool) -> Sequence[KeyInfo]:
        """Make the next key the active one; return the keys, the newest first.

        Raises NextKeyTooNew, unless forced, while a verifier may not know the key.
        """
        return await self.store.rotate(None if force else self.clock() - MIN_PUBLISHED)

    async def list(self) -> Sequence[KeyInfo]:
        """Return the keys, the newest first."""
        return await self.store.all()


def expired_keys(keys: Sequence[KeyInfo], now: datetime) -> frozenset[str]:
    """Return the ids of keys whose tokens have all expired; `keys` newest first.

    Each rotation makes one key and retires the third newest: a retired key was
    retired when the key two places before it was made.
    """
    return frozenset(
        key.kid
        for key, successor in zip(keys[2:], keys, strict=False)
        if key.state is KeyState.RETIRED and now > successor.created_at + EXPIRED_AFTER
    )
