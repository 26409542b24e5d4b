"""Logging in, staying logged in and logging out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from server.domain.clock import Clock
from server.domain.credentials.passwords import PasswordHasher
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.sessions import RefreshTokens, Rotation, Session
from server.domain.credentials.tokens import LIFETIME, AccessTokens, Claims
from server.domain.errors import InvalidCredentials, RefreshTokenInvalid, TokenInvalid
from server.domain.limits import Bucket, Limiter, Window, address_key
from server.domain.users import Role, fold

# R5: the spellings of one account share this count
VERIFIED_PER_ACCOUNT = Window(5, timedelta(seconds=60))


@dataclass(frozen=True, slots=True)
class Account:
    """What a log-in needs to know of an account."""

    user_id: int
    password_hash: str
    role: Role
    is_active: bool


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a session lives by; the times are from now."""

    access_token: str
    expires_in: timedelta
    refresh_token: str
    refresh_expires_in: timedelta
    session_id: str


class AccountStore(Protocol):
    """Finds accounts by what people type."""

    async def account(self, identifier: str) -> Account | None:
        """Give the account with this folded username or e-mail address."""

    async def account_by_id(self, user_id: int) -> Account | None:
        """Give the account with this id."""

    async def replace_hash(self, user_id: int, old: str, new: str) -> None:
        """Put a better hash of the same password in place of the old one."""


Decide = Callable[[Session], Rotation]


class SessionStore(Protocol):
    """Keeps sessions."""

    async def add(self, session: Session) -> None:
        """Write a new session."""

    async def rotate(self, session_id: UUID, decide: Decide) -> Rotation | None:
        """Lock the session, let `decide` say what becomes of it, and write that.

        Gives None if there is no such session. What `decide` raises changes nothing.
        """

    async def end(self, session_id: UUID, now: datetime) -> None:
        """End the session and let every process know; ending it twice is no error."""


@dataclass(frozen=True, slots=True)
class Authentication:
    """The rules of sessions."""

    accounts: AccountStore
    sessions: SessionStore
    hasher: PasswordHasher
    access: AccessTokens
    refresh: RefreshTokens
    revocations: Revocations
    attempts: Limiter
    clock: Clock

    async def log_in(
        self, identifier: str, password: str, address: str, device: str
    ) -> Tokens:
        """Open a session. Raises InvalidCredentials, for whatever cause; Overloaded.

        Takes as long for an unknown account as for a known one (R2), and verifies
        no more than five passwords of one account from one address a minute (R5).
        """
        account = await self.accounts.account(fold(identifier))
        counted = f"{account.user_id}" if account else fold(identifier)
        key = f"{counted}|{address_key(address)}"
        refusal = await self.attempts.take(
            [Bucket("account", key, VERIFIED_PER_ACCOUNT)]
        )
        hashed = account.password_hash if account and not refusal else None
        verdict = await self.hasher.verify(password, hashed)
        if not (account and verdict.matches and account.is_active):
            raise InvalidCredentials
        if hashed and verdict.upgraded:
            await self.accounts.replace_hash(account.user_id, hashed, verdict.upgraded)
        now = self.clock()
        session, token = self.refresh.open(account.user_id, address, device, now)
        await self.sessions.add(session)
        return self._tokens(session, token, account.role, now)

    async def refresh_tokens(self, token: str) -> Tokens:
        """Give a session's next tokens. Raises RefreshTokenInvalid."""
        session_id = self.refresh.session_id(token)
        now = self.clock()
        rotation = await self.sessions.rotate(
            session_id, lambda session: self.refresh.rotate(session, token, now)
        )
        if rotation is None:
            raise RefreshTokenInvalid("no such session")
        session = rotation.session
        if not rotation.token:
            self.revocations.add(session.name, now)
            raise RefreshTokenInvalid(rotation.cause)
        account = await self.accounts.account_by_id(session.user_id)
        if account is None or not account.is_active:
            raise RefreshTokenInvalid("the account is gone or disabled")
        return self._tokens(session, rotation.token, account.role, now)

    async def log_out(self, session_id: str) -> None:
        """End a session; its access tokens are refused from now on."""
        now = self.clock()
        await self.sessions.end(UUID(session_id), now)
        self.revocations.add(session_id, now)

    def verify(self, token: str) -> Claims:
        """Give what an access token in force says. Raises TokenInvalid. No I/O."""
        claims = self.access.verify(token)
        if self.revocations.covers(claims.session_id):
            raise TokenInvalid("the session has ended")
        return claims

    def _tokens(
        self, session: Session, token: str, role: Role, now: datetime
    ) -> Tokens:
        access = self.access.issue(
            session.user_id, session.name, role, session.created_at
        )
        return Tokens(access, LIFETIME, token, session.expires_at - now, session.name)
