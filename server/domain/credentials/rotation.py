"""Rotating the keys that sign access tokens: next, active, retired, gone.

A key is published as the next one until every verifier has seen it, then it signs,
then it is kept until nothing that it signed can be alive (ASVS 13.3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from server.domain.clock import Clock
from server.domain.credentials.tokens import LEEWAY, LIFETIME, KeyState

# the key set may be kept for 300 s, a process looks every 30 s, and clocks differ
PUBLISHED_FOR = timedelta(seconds=300 + 30) + LEEWAY
# a process that is told late goes on signing for a while
SPENT_AFTER = LIFETIME + LEEWAY + timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A signing key without its secret."""

    kid: str
    state: KeyState
    created_at: datetime


class SigningKeyStore(Protocol):
    """Keeps the keys that all processes share."""

    async def rotate(self, published_before: datetime | None) -> Sequence[KeyInfo]:
        """Have the next key sign; every process learns it. Gives the keys as they are.

        Raises NextKeyTooNew if the next key was made after `published_before`.
        """

    async def all(self) -> Sequence[KeyInfo]:
        """Give the keys, the newest first."""


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The rules of rotation."""

    store: SigningKeyStore
    clock: Clock

    async def rotate(self, *, force: bool) -> Sequence[KeyInfo]:
        """Have the next key sign; gives the keys as they are, the newest first.

        Raises NextKeyTooNew, unless forced, while a verifier may not know the key.
        """
        return await self.store.rotate(None if force else self.clock() - PUBLISHED_FOR)

    async def list(self) -> Sequence[KeyInfo]:
        """Give the keys, the newest first."""
        return await self.store.all()


def spent_keys(keys: Sequence[KeyInfo], now: datetime) -> frozenset[str]:
    """Give the keys that signed nothing which can be alive; `keys` newest first.

    Each rotation makes one key and retires the one that is then the third newest: a
    retired key was retired when the one two places before it was made.
    """
    return frozenset(
        key.kid
        for key, made_then in zip(keys[2:], keys, strict=False)
        if key.state is KeyState.RETIRED and now > made_then.created_at + SPENT_AFTER
    )
