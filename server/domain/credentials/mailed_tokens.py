"""Tokens that go by mail: what proves that somebody reads an address.

A token is a MAC of ours over the entry of the outbox that it goes with: 256 bits
that nobody without the key can guess, and the same ones when the entry is tried
again, so that a repeated mail repeats its link. The store holds its hash alone.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Protocol

from server.domain.clock import Clock
from server.domain.credentials.secret_key import Mac
from server.domain.outbox.entries import Entry


class Purpose(StrEnum):
    """What a token is good for."""

    RESET = "password_reset"
    VERIFY = "email_verification"
    CHANGE = "email_change"


LIFETIMES = {
    Purpose.RESET: timedelta(minutes=30),
    Purpose.VERIFY: timedelta(hours=24),
    Purpose.CHANGE: timedelta(hours=24),
}
# to one account a day; beyond it silently none
MOST_A_DAY = {Purpose.RESET: 10}


@dataclass(frozen=True, slots=True)
class MailedToken:
    """A token as it is kept; `address` is what its bearer has proven to read."""

    digest: bytes
    purpose: Purpose
    user_id: int
    address: str
    outbox_id: int
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class TokenOwner:
    """Whose a token is."""

    user_id: int
    username: str
    email: str


class MailedTokenStore(Protocol):
    """Keeps tokens; each is used once, by whoever is first."""

    async def mint(self, token: MailedToken, most_a_day: int | None) -> bool:
        """Keep a token; False if its mail is not to be sent.

        That is where the account is gone or disabled, has another address, or got
        as many mails as it may, or where the entry was taken back.
        """

    async def owner(
        self, digest: bytes, purpose: Purpose, now: datetime
    ) -> TokenOwner | None:
        """Give whose token in force this is, without using it."""

    async def reset_password(self, digest: bytes, hashed: str, now: datetime) -> None:
        """Use a token: put a new hash, and end every session of its owner.

        Raises MailedTokenInvalid.
        """

    async def verify_email(self, digest: bytes, now: datetime) -> int:
        """Use a token: the owner reads its address, which becomes the account's.

        Gives who that is. Raises MailedTokenInvalid, EmailTaken.
        """


def mailed_digest(token: str) -> bytes:
    """Give what a token is kept as; 256 bits need no slow hash."""
    return sha256(token.encode(errors="replace")).digest()


@dataclass(frozen=True, slots=True)
class MailedTokens:
    """Makes tokens when their mails are sent."""

    store: MailedTokenStore
    mac: Mac
    clock: Clock

    async def make(
        self, purpose: Purpose, entry: Entry, user_id: int, address: str
    ) -> str:
        """Give the token of an entry, "" if its mail is not to be sent."""
        name = f"{purpose} {entry.id} {entry.created_at.timestamp()} {user_id}"
        secret = self.mac.sign(f"{name} {address}".encode())
        token = urlsafe_b64encode(secret).decode().rstrip("=")
        now = self.clock()
        kept = MailedToken(
            digest=mailed_digest(token),
            purpose=purpose,
            user_id=user_id,
            address=address,
            outbox_id=entry.id,
            created_at=now,
            expires_at=now + LIFETIMES[purpose],
        )
        minted = await self.store.mint(kept, MOST_A_DAY.get(purpose))
        return token if minted else ""
