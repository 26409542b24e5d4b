"""Log-in, refresh and log-out: the rules of sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from server.domain.accounts.users import Role, normalize_identifier
from server.domain.callers import Caller, current_caller
from server.domain.clock import Clock
from server.domain.credentials.passwords import (
    PasswordHasher,
    PasswordPolicy,
    check_password,
)
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.service_keys import PREFIX, ServiceKeys
from server.domain.credentials.sessions import RefreshTokens, Rotation, Session
from server.domain.credentials.stores import (
    Account,
    AccountStore,
    EmailOutbox,
    Owner,
    SessionStore,
)
from server.domain.credentials.tokens import LIFETIME, AccessTokens, Claims
from server.domain.errors import (
    AccessDenied,
    InvalidCredentials,
    KeyUnknown,
    RefreshTokenInvalid,
    SessionNotFound,
    TokenInvalid,
    TokenMissing,
)
from server.domain.factors.challenges import Client
from server.domain.idempotency import IdempotencyRecord
from server.domain.limits import AccountLimit, Bucket, Limiter, Window
from server.domain.outbox.entries import EventType, NewEntry

# R6: one more failed log-in within the hour warns the owner, once a day
FAILURES_WITHOUT_WARNING = Window(9, timedelta(hours=1))
WARNINGS = Window(1, timedelta(days=1))


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a session, with their remaining lifetimes."""

    user_id: int
    access_token: str
    expires_in: timedelta
    refresh_token: str
    refresh_expires_in: timedelta
    session_id: str


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
    email_outbox: EmailOutbox
    policy: PasswordPolicy
    clock: Clock

    async def authenticate(
        self, identifier: str, password: str, limits: Sequence[AccountLimit]
    ) -> Account:
        """Return the account with this identifier and this password.

        Raises InvalidCredentials, whatever the cause, and Overloaded. Takes as long
        for an unknown account as for a known one (R2).
        """
        identifier = normalize_identifier(identifier)
        with self.hasher.reserved():
            account = await self.accounts.account(identifier)
            return await self.verified(account, identifier, password, limits)

    async def open_session(
        self, account: Account, client: Client, amr: Sequence[str]
    ) -> Tokens | None:
        """Open a session, authenticated by the methods in `amr`.

        Returns None, and opens none, if the account has changed since it was read.
        """
        now = self.clock()
        current_caller.set(Caller(account.user_id))  # whose session is written
        session, token = self.refresh.open(
            account.user_id, client.address, client.device, now, amr
        )
        if not await self.sessions.add(session, account.version):
            return None
        return self._tokens(session, token, account.role, now)

    async def verified(
        self,
        account: Account | None,
        identifier: str,
        password: str,
        limits: Sequence[AccountLimit],
    ) -> Account:
        """Return the account if the password is right and within the limits (R5).

        Beyond a limit nothing is verified, but the error and its time are those of a
        wrong password. `identifier` is counted in place of an unknown account. Raises
        InvalidCredentials, Overloaded.
        """
        counted = f"user:{account.user_id}" if account else f"name:{identifier}"
        if await self.is_limited(counted, limits):
            await self.hasher.verify(password, None)
            raise InvalidCredentials(account.user_id if account else 0)
        hashed = account.password_hash if account else None
        verification = await self.hasher.verify(password, hashed)
        if not (account and verification.matches and account.is_active):
            await self.count_failure(account, counted)
            raise InvalidCredentials(account.user_id if account else 0)
        if verification.upgraded:
            old = account.password_hash
            await self.accounts.replace_hash(
                account.user_id, old, verification.upgraded
            )
        return account

    async def is_limited(self, counted: str, limits: Sequence[AccountLimit]) -> bool:
        """Count an attempt for `counted`; return whether it is beyond a limit (R5)."""
        buckets = [limit.bucket(counted) for limit in limits]
        return bool(buckets and await self.attempts.take(buckets))

    async def count_failure(self, account: Account | None, counted: str) -> None:
        """Warn the owner, once a day, of many failed log-ins from any address.

        Does the same for an account that does not exist, to take as long (R2).
        """
        failures = Bucket("failed-log-ins", counted, FAILURES_WITHOUT_WARNING)
        if not await self.attempts.take([failures]):
            return
        if await self.attempts.take(
            [Bucket("failed-log-in-warnings", counted, WARNINGS)]
        ):
            return
        user_id = account.user_id if account else None
        warning = NewEntry(EventType.FAILED_LOG_INS, user_id)
        await self.email_outbox.add(self.clock(), warning)

    async def change_password(
        self,
        caller: Caller,
        current: str,
        new: str,
        limits: Sequence[AccountLimit],
        idempotency: IdempotencyRecord[None] | None = None,
    ) -> None:
        """Change the caller's password and end the caller's other sessions (R13).

        Raises InvalidCredentials, InvalidFields for a weak password, Overloaded.
        """
        account = await self.accounts.account_by_id(caller.user_id)
        username, email = (account.username, account.email) if account else ("", "")
        check_password(new, username, self.policy, "newPassword", email=email)
        account = await self.verified(account, caller.subject, current, limits)
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
        """Return open sessions: the caller's, or for admins those of any user.

        Raises AccessDenied.
        """
        owner_id = user_id or caller.user_id
        if not caller.sees_all_of(owner_id):
            raise AccessDenied("only admins may list the sessions of other users")
        return await self.sessions.open_of(owner_id, self.clock())

    async def end_session(self, caller: Caller, session_id: str) -> None:
        """End a session of the caller, or for admins of any user.

        Raises SessionNotFound, also for another user's session: its existence is not
        revealed.
        """
        owner_id = 0 if caller.is_admin else caller.user_id
        if not await self.sessions.end(UUID(session_id), self.clock(), owner_id):
            raise SessionNotFound(session_id)

    async def refresh_tokens(self, token: str) -> Tokens:
        """Return a session's next tokens. Raises RefreshTokenInvalid."""
        session_id = self.refresh.read_session_id(token)
        now = self.clock()

        def decide(session: Session, owner: Owner) -> Rotation:
            if not owner.is_active:
                raise RefreshTokenInvalid("the account is deleted or disabled")
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
        session_id = self.refresh.read_session_id(refresh_token)
        user_id = await self.sessions.end(session_id, self.clock())
        return Caller(user_id, session_id.hex)

    def identify(
        self, token: str | None, alternative_names: Sequence[str] = ()
    ) -> Caller:
        """Return the caller of an access token or a service key. No I/O.

        `alternative_names` are those of a verified client certificate. One that stands
        for a service key replaces a missing token, and contradicts another key.

        Raises TokenMissing, TokenInvalid; KeyUnknown if another process may know the
        signing key.
        """
        if token is None or token.startswith(PREFIX):
            return self._identify_service(token, alternative_names)
        return self.verify(token).caller

    def _identify_service(
        self, secret: str | None, alternative_names: Sequence[str]
    ) -> Caller:
        keys = self.service_keys
        name = keys.certified_name(alternative_names)
        if secret is not None:
            key = keys.verify(secret)
            keys.check_certified(key, name)
        elif name:
            key = keys.certified(name)
        else:
            keys.refused_certificates += bool(alternative_names)
            raise TokenMissing
        return Caller(
            service_id=key.id, sees_private=key.private_fields, certificate=name
        )

    async def introspect(self, token: str) -> Claims:
        """Return the claims of a valid access token. Raises TokenInvalid."""
        try:
            return self.verify(token)
        except KeyUnknown:
            await self.access.ring.reload()
            return self.verify(token)

    def verify(self, token: str) -> Claims:
        """Return the claims of a valid access token. No I/O.

        Raises TokenInvalid; KeyUnknown if another process may know the signing key.
        """
        claims = self.access.verify(token)
        if self.revocations.covers(claims.session_id):
            raise TokenInvalid("the session has ended")
        return claims

    def _tokens(
        self, session: Session, token: str, role: Role, now: datetime
    ) -> Tokens:
        access = self.access.issue(
            session.user_id, session.name, role, session.auth_time, session.amr
        )
        return Tokens(
            user_id=session.user_id,
            access_token=access,
            expires_in=LIFETIME,
            refresh_token=token,
            refresh_expires_in=session.expires_at - now,
            session_id=session.name,
        )
