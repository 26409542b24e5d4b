"""Logging in, staying logged in and logging out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from server.domain.accounts.users import Role, normalize_identifier
from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.credentials.passwords import (
    PasswordHasher,
    PasswordPolicy,
    check_password,
)
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.service_keys import PREFIX, ServiceKeys
from server.domain.credentials.sessions import RefreshTokens, Rotation, Session
from server.domain.credentials.tokens import LIFETIME, AccessTokens, Claims
from server.domain.errors import (
    AccessDenied,
    InvalidCredentials,
    KeyUnknown,
    RefreshTokenInvalid,
    SessionNotFound,
    TokenInvalid,
)
from server.domain.idempotency import IdempotencyRecord
from server.domain.limits import Bucket, Limiter, Window, address_key
from server.domain.outbox.entries import EventType, NewEntry

# R5: the spellings of one account share this count
VERIFIED_PER_ACCOUNT = Window(5, timedelta(seconds=60))
# R6: the next one within the hour is told to the account's owner, once a day
UNREMARKABLE_FAILURES = Window(9, timedelta(hours=1))
WARNINGS = Window(1, timedelta(days=1))
TRIES = 2  # an account may change, by its new name say, while its password is verified


@dataclass(frozen=True, slots=True)
class Account:
    """What a log-in needs to know of an account; `version` grows when it changes."""

    user_id: int
    username: str
    password_hash: str
    role: Role
    is_active: bool
    email: str = ""
    version: int = 1


@dataclass(frozen=True, slots=True)
class Owner:
    """What a refresh needs to know of the session's owner."""

    role: Role
    is_active: bool


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a session lives by; the times are from now."""

    user_id: int
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


Decide = Callable[[Session, "Owner"], Rotation]


class SessionStore(Protocol):
    """Keeps sessions."""

    async def add(self, session: Session, version: int) -> bool:
        """Write a new session; False if the account has changed since this version.

        A password that was right when it was verified may be none by now.
        """

    async def rotate(
        self, session_id: UUID, decide: Decide
    ) -> tuple[Rotation, Owner] | None:
        """Lock the session, let `decide` say what becomes of it, and write that.

        Gives None if there is no such session. What `decide` raises changes nothing.
        """

    async def end(self, session_id: UUID, now: datetime, user_id: int = 0) -> int:
        """End the session, of this user if one is named; return its user, 0 for none.

        Ending it twice is no error. Every process gets to know.
        """

    async def end_all(
        self, user_id: int, now: datetime, keep: UUID | None = None
    ) -> None:
        """End every session of a user but the one to keep."""

    async def open_of(self, user_id: int, now: datetime) -> Sequence[Session]:
        """Give a user's sessions that have not ended, the newest first."""

    async def ask_email_change(
        self, account: Account, new_email: str, keep: UUID, now: datetime
    ) -> bool:
        """Have both addresses written to, and end the other sessions.

        Does nothing and gives False if the account has changed since. Raises
        TokenInvalid if the session to keep has ended, too.
        """

    async def change_password(
        self,
        account: Account,
        hashed: str,
        keep: UUID,
        now: datetime,
        idempotency: IdempotencyRecord[None] | None = None,
    ) -> bool:
        """Put a new hash and end the other sessions, in one transaction.

        The owner is told by mail. Does nothing and gives False if the account has
        changed since. Raises AnswerExists, and TokenInvalid if the session to keep
        has ended, too.
        """


class Mailing(Protocol):
    """Takes what is to be told, though nothing else has changed."""

    async def add(self, now: datetime, *entries: NewEntry) -> None:
        """Write entries that follow no other change."""


@dataclass(frozen=True, slots=True)
class Authentication:
    """The rules of sessions."""

    accounts: AccountStore
    sessions: SessionStore
    hasher: PasswordHasher
    access: AccessTokens
    refresh: RefreshTokens
    revocations: Revocations
    service_keys: ServiceKeys
    attempts: Limiter
    mailing: Mailing
    policy: PasswordPolicy
    clock: Clock

    async def log_in(
        self, identifier: str, password: str, address: str, device: str
    ) -> Tokens:
        """Open a session. Raises InvalidCredentials, for whatever cause; Overloaded.

        Takes as long for an unknown account as for a known one (R2), and verifies
        no more than five passwords of one account from one address a minute (R5).
        """
        identifier, user_id = normalize_identifier(identifier), 0
        for _ in range(TRIES):
            account = await self.accounts.account(identifier)
            account = await self.verified(account, identifier, password, address)
            user_id, now = account.user_id, self.clock()
            session, token = self.refresh.open(user_id, address, device, now)
            if await self.sessions.add(session, account.version):
                return self._tokens(session, token, account.role, now)
        raise InvalidCredentials(user_id)

    async def verified(
        self, account: Account | None, counted: str, password: str, address: str
    ) -> Account:
        """Give the account if the password is its own and it was not tried too often.

        Raises InvalidCredentials, Overloaded.
        """
        who = f"user:{account.user_id}" if account else f"name:{counted}"
        key = f"{who}|{address_key(address)}"
        refusal = await self.attempts.take(
            [Bucket("account", key, VERIFIED_PER_ACCOUNT)]
        )
        hashed = account.password_hash if account and not refusal else None
        verdict = await self.hasher.verify(password, hashed)
        if not (account and verdict.matches and account.is_active):
            await self._count_failure(account, who)
            raise InvalidCredentials(account.user_id if account else 0)
        if hashed and verdict.upgraded:
            await self.accounts.replace_hash(account.user_id, hashed, verdict.upgraded)
        return account

    async def _count_failure(self, account: Account | None, who: str) -> None:
        """Tell the owner once a day that many log-ins fail, wherever they come from.

        All the same for an account that does not exist, so that it takes as long (R2).
        """
        many = Bucket("failed-log-ins", who, UNREMARKABLE_FAILURES)
        if not await self.attempts.take([many]):
            return
        if await self.attempts.take([Bucket("failed-log-ins-told", who, WARNINGS)]):
            return
        user_id = account.user_id if account else None
        told = NewEntry(EventType.FAILED_LOG_INS, user_id)
        await self.mailing.add(self.clock(), told)

    async def change_password(
        self,
        caller: Caller,
        current: str,
        new: str,
        address: str,
        idempotency: IdempotencyRecord[None] | None = None,
    ) -> None:
        """Change the caller's password and end the caller's other sessions (R13).

        Raises InvalidCredentials, InvalidFields for a weak one, Overloaded.
        """
        account = await self.accounts.account_by_id(caller.user_id)
        username, email = (account.username, account.email) if account else ("", "")
        check_password(new, username, self.policy, "newPassword", email=email)
        account = await self.verified(account, caller.subject, current, address)
        hashed = await self.hasher.hash(new)
        keep = UUID(caller.session_id)
        if not await self.sessions.change_password(
            account, hashed, keep, self.clock(), idempotency
        ):
            raise InvalidCredentials(account.user_id)

    async def log_out_everywhere(self, user_id: int) -> None:
        """End every session of a user."""
        await self.sessions.end_all(user_id, self.clock())

    async def list_sessions(self, caller: Caller, user_id: int) -> Sequence[Session]:
        """Give open sessions: the caller's, or for admins another's.

        Raises AccessDenied.
        """
        wanted = user_id or caller.user_id
        if not caller.sees_all_of(wanted):
            raise AccessDenied("only admins see the sessions of others")
        return await self.sessions.open_of(wanted, self.clock())

    async def end_session(self, caller: Caller, session_id: str) -> None:
        """End a session of the caller, or for admins of anybody.

        Raises SessionNotFound, for another's too: whether it exists is not told.
        """
        owner = 0 if caller.is_admin else caller.user_id
        if not await self.sessions.end(UUID(session_id), self.clock(), owner):
            raise SessionNotFound(session_id)

    async def refresh_tokens(self, token: str) -> Tokens:
        """Give a session's next tokens. Raises RefreshTokenInvalid."""
        session_id = self.refresh.session_id(token)
        now = self.clock()

        def decide(session: Session, owner: Owner) -> Rotation:
            if not owner.is_active:
                raise RefreshTokenInvalid("the account is gone or disabled")
            return self.refresh.rotate(session, token, now)

        rotated = await self.sessions.rotate(session_id, decide)
        if rotated is None:
            raise RefreshTokenInvalid("no such session")
        rotation, owner = rotated
        if not rotation.token:
            raise RefreshTokenInvalid(rotation.cause)
        return self._tokens(rotation.session, rotation.token, owner.role, now)

    async def log_out(self, session_id: str) -> None:
        """End a session; its access tokens are refused from now on."""
        await self.sessions.end(UUID(session_id), self.clock())

    async def end_session_of(self, refresh_token: str) -> Caller:
        """End the session of a refresh token, an older one too; return its user.

        Raises RefreshTokenInvalid for a token that was never issued.
        """
        session_id = self.refresh.session_id(refresh_token)
        user_id = await self.sessions.end(session_id, self.clock())
        return Caller(user_id, session_id.hex)

    def identify(self, token: str) -> Caller:
        """Give whose access token or service key it is.

        Raises TokenInvalid; KeyUnknown if its key is worth a look. No I/O.
        """
        if token.startswith(PREFIX):
            key = self.service_keys.verify(token)
            return Caller(service_id=key.id, sees_private=key.private_fields)
        claims = self.verify(token)
        return Caller(claims.user_id, claims.session_id, claims.role == Role.ADMIN)

    async def introspect(self, token: str) -> Claims:
        """Give what an access token in force says. Raises TokenInvalid."""
        try:
            return self.verify(token)
        except KeyUnknown:
            await self.access.ring.learn()
            return self.verify(token)

    def verify(self, token: str) -> Claims:
        """Give what an access token in force says.

        Raises TokenInvalid; KeyUnknown if its key is worth a look. No I/O.
        """
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
        return Tokens(
            user_id=session.user_id,
            access_token=access,
            expires_in=LIFETIME,
            refresh_token=token,
            refresh_expires_in=session.expires_at - now,
            session_id=session.name,
        )
