"""Tokens sent by e-mail: they prove that their bearer reads an address.

A token is a MAC over its outbox entry: 256 bits that cannot be guessed without the
key. A repeated delivery of the entry makes the same token, so that a repeated e-mail
has the same link. The store keeps only the hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Protocol

from server.domain.clock import Clock
from server.domain.credentials import base64url
from server.domain.credentials.secret_key import Mac
from server.domain.outbox.entries import Entry


class Purpose(StrEnum):
    """The purpose that a token is limited to."""

    RESET = "password_reset"
    VERIFY = "email_verification"
    CHANGE = "email_change"
    LOGIN_CODE = "login_code"  # of which the e-mail has a part only


LIFETIMES = {
    Purpose.RESET: timedelta(minutes=30),
    Purpose.VERIFY: timedelta(hours=24),
    Purpose.CHANGE: timedelta(hours=24),
    Purpose.LOGIN_CODE: timedelta(minutes=10),
}
# per account; beyond it no e-mail is sent, and the caller does not learn of it
MAX_PER_DAY = {Purpose.RESET: 10, Purpose.LOGIN_CODE: 10}


@dataclass(frozen=True, slots=True)
class MailedToken:
    """A stored token; its bearer has proven to read `address`."""

    digest: bytes
    purpose: Purpose
    user_id: int
    address: str
    outbox_id: int
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class TokenOwner:
    """The owner of a token."""

    user_id: int
    username: str
    email: str


class MailedTokenStore(Protocol):
    """Stores tokens; each can be used once, by the first call."""

    async def mint(self, token: MailedToken, max_per_day: int | None) -> bool:
        """Store a token; return False if its e-mail must not be sent.

        So it is if the account is deleted or disabled, has another address or has
        reached `max_per_day`, and if the outbox entry was withdrawn.
        """

    async def owner(
        self, digest: bytes, purpose: Purpose, now: datetime
    ) -> TokenOwner | None:
        """Return the owner of a valid token, without using it."""

    async def reset_password(self, digest: bytes, hashed: str, now: datetime) -> None:
        """Use a token: write a new hash, and end every session of its owner.

        Raises MailedTokenInvalid.
        """

    async def verify_email(self, digest: bytes, now: datetime) -> int:
        """Use a token: its address becomes the account's verified one.

        Returns the user's id, also for a used token while that is still so. Raises
        MailedTokenInvalid, EmailTaken.
        """


def mailed_digest(token: str) -> bytes:
    """Return the hash of a token; 256 bits need no slow hash."""
    return sha256(token.encode(errors="replace")).digest()


@dataclass(frozen=True, slots=True)
class MailedTokens:
    """Makes tokens when their e-mails are sent."""

    store: MailedTokenStore
    mac: Mac
    clock: Clock

    async def make(
        self, purpose: Purpose, entry: Entry, user_id: int, address: str
    ) -> str:
        """Return the token of an entry; "" if its e-mail must not be sent."""
        name = f"{purpose} {entry.id} {entry.created_at.timestamp()} {user_id}"
        secret = self.mac.sign(f"{name} {address}".encode())
        token = base64url.encode(secret)
        now = self.clock()
        stored = MailedToken(
            digest=mailed_digest(token),
            purpose=purpose,
            user_id=user_id,
            address=address,
            outbox_id=entry.id,
            created_at=now,
            expires_at=now + LIFETIMES[purpose],
        )
        minted = await self.store.mint(stored, MAX_PER_DAY.get(purpose))
        return token if minted else ""
