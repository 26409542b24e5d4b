"""Codes that are sent by e-mail, for log-ins without a password.

A code is made when its e-mail is sent: eight characters, 40 bits of a mailed token,
which nobody receives as a whole. The challenge of the request gets a MAC of the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from server.domain.clock import Clock
from server.domain.credentials import base64url
from server.domain.credentials.mailed_tokens import LIFETIMES, MailedTokens, Purpose
from server.domain.credentials.secret_key import Mac
from server.domain.factors.challenges import Challenge
from server.domain.factors.readable_codes import encode, normalized
from server.domain.outbox.entries import Entry

LIFETIME: timedelta = LIFETIMES[Purpose.LOGIN_CODE]
CHALLENGE = "challenge"  # in an outbox entry: the id of the challenge
_CODE_MAC = "code_mac"  # in a challenge
_LENGTH = 8
_NO_MAC = "00" * 32


class LoginCodeStore(Protocol):
    """Writes which code completes a challenge."""

    async def issue(
        self,
        challenge_id: UUID,
        user_id: int,
        address: str,
        data: dict[str, str],
        now: datetime,
    ) -> bool:
        """Assign a challenge to an account; return False if it must have no code.

        So it is if the challenge has expired, or if the account has changed since the
        request, is disabled or deleted, or has another address.
        """


@dataclass(frozen=True, slots=True)
class LoginCodeMacs:
    """Binds codes to challenges, without I/O."""

    mac: Mac

    def data(self, challenge_id: UUID, code: str) -> dict[str, str]:
        """Return what a challenge stores of its code."""
        return {_CODE_MAC: self.mac.sign(_message(challenge_id, code)).hex()}

    def matches(self, challenge: Challenge, code: str) -> bool:
        """Return whether a code is the challenge's; takes as long if it has none."""
        tag = bytes.fromhex(challenge.data.get(_CODE_MAC, _NO_MAC))
        return self.mac.verify(_message(challenge.id, code), tag)


@dataclass(frozen=True, slots=True)
class MailedLoginCodes:
    """Makes codes when their e-mails are sent."""

    tokens: MailedTokens
    store: LoginCodeStore
    macs: LoginCodeMacs
    clock: Clock

    async def make(self, entry: Entry, user_id: int, address: str) -> str:
        """Return the code of an entry; "" if its e-mail must not be sent.

        A repeated delivery of the entry makes the same code.
        """
        token = await self.tokens.make(Purpose.LOGIN_CODE, entry, user_id, address)
        if not token:
            return ""
        code = encode(base64url.decode(token), _LENGTH)
        challenge_id = UUID(hex=str(entry.payload[CHALLENGE]))
        data = self.macs.data(challenge_id, code)
        issued = await self.store.issue(
            challenge_id, user_id, address, data, self.clock()
        )
        return code.upper() if issued else ""


def _message(challenge_id: UUID, code: str) -> bytes:
    return challenge_id.bytes + normalized(code).encode(errors="replace")
