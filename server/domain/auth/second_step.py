"""Second factors at work: completing log-ins, and reauthentication."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from server.domain.auth.authentication import Authentication, Tokens
from server.domain.callers import Caller
from server.domain.credentials.stores import Account
from server.domain.credentials.tokens import LIFETIME
from server.domain.errors import (
    ImpersonationForbidden,
    InvalidCredentials,
    TokenInvalid,
)
from server.domain.factors.challenges import ChallengeKind, Challenges, Client
from server.domain.factors.factors import TotpFactor
from server.domain.factors.methods import PASSKEY_METHODS, AuthMethod, merged
from server.domain.factors.recovery_codes import digest
from server.domain.factors.totp import Totp
from server.domain.limits import AccountLimit


@dataclass(frozen=True, slots=True)
class Proof:
    """What a client sends to prove a factor: one of these is set."""

    password: str = field(default="", repr=False)
    totp_code: str = field(default="", repr=False)
    recovery_code: str = field(default="", repr=False)
    passkey: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class NewAccessToken:
    """An access token of a session, with its lifetime."""

    token: str = field(repr=False)
    expires_in: timedelta


class FactorUses(Protocol):
    """Uses up what proves a factor: each step and each code once."""

    async def totp_factors(self, user_id: int) -> Sequence[TotpFactor]:
        """Return the confirmed authenticator apps of a user."""

    async def use_totp(
        self, factor_id: int, step: int, secret: bytes, now: datetime
    ) -> bool:
        """Use a time step and all before it; False if it was used.

        The secret is stored again, as it is encrypted now.
        """

    async def use_recovery_code(
        self, user_id: int, code_digest: bytes, now: datetime
    ) -> bool:
        """Use a recovery code, and inform its owner; False if there is none unused."""


class PasskeyProofs(Protocol):
    """Verifies what passkeys sign."""

    async def verify(
        self, user_id: int, challenge_token: str, response: Mapping[str, Any]
    ) -> bool:
        """Return whether a passkey of the user has signed a challenge.

        Without a token, the challenge is one of BeginPasskeyLogin, which it uses up.
        """


class ReauthenticationStore(Protocol):
    """Writes reauthentications."""

    async def reauthenticate(
        self, session_id: UUID, user_id: int, methods: Sequence[str], now: datetime
    ) -> Sequence[str]:
        """Note in an open session that its user was authenticated now.

        Returns all its methods; none if the session has ended.
        """


@dataclass(frozen=True, slots=True)
class SecondStep:
    """The rules of second factors, on top of those of sessions."""

    authentication: Authentication
    challenges: Challenges
    uses: FactorUses
    sessions: ReauthenticationStore
    totp: Totp
    passkeys: PasskeyProofs | None = None

    async def complete(self, token: str, proof: Proof, client: Client) -> Tokens:
        """Complete a log-in with a second factor, and open its session.

        The attempt is counted before anything is verified. Raises InvalidCredentials,
        whatever the cause.
        """
        rules = self.authentication
        challenge = await self.challenges.attempt(ChallengeKind.LOG_IN, token, client)
        if challenge is None:
            raise _refusal(0)
        account = await rules.accounts.account_by_id(challenge.user_id)
        if not (account and account.is_active and account.version == challenge.version):
            raise _refusal(challenge.user_id)
        methods = await self._proven(account, proof, token)
        if not methods:
            await rules.count_failure(account, f"user:{account.user_id}")
            raise _refusal(account.user_id)
        if not await self.challenges.consume(challenge):
            raise _refusal(account.user_id)
        amr = merged(challenge.data["amr"], methods)
        tokens = await rules.open_session(account, client, amr)
        if tokens is None:
            raise _refusal(account.user_id)
        return tokens

    async def reauthenticate(
        self, caller: Caller, proof: Proof, limits: Sequence[AccountLimit]
    ) -> NewAccessToken:
        """Return a new access token of the caller's session, authenticated now.

        Raises InvalidCredentials, ImpersonationForbidden, Overloaded; TokenInvalid if
        the session has ended.
        """
        if caller.actor_id:
            raise ImpersonationForbidden("an admin who acts as a user has no password")
        rules = self.authentication
        account = await rules.accounts.account_by_id(caller.user_id)
        methods: Sequence[str] = (AuthMethod.PASSWORD,)
        if proof.password:
            account = await rules.verified(
                account, caller.subject, proof.password, limits
            )
        elif account is None or await rules.is_limited(caller.subject, limits):
            raise InvalidCredentials(caller.user_id)
        else:
            methods = await self._proven(account, proof, "")
        if not methods:
            await rules.count_failure(account, caller.subject)
            raise InvalidCredentials(caller.user_id)
        return await self._renewed(caller, account, methods)

    async def _renewed(
        self, caller: Caller, account: Account, methods: Sequence[str]
    ) -> NewAccessToken:
        rules, now = self.authentication, self.authentication.clock()
        session_id = UUID(caller.session_id)
        amr = await self.sessions.reauthenticate(
            session_id, account.user_id, methods, now
        )
        if not amr:
            raise TokenInvalid("the session has ended")
        token = rules.access.issue(
            account.user_id, caller.session_id, account.role, now, amr
        )
        return NewAccessToken(token, LIFETIME)

    async def _proven(
        self, account: Account, proof: Proof, challenge_token: str
    ) -> Sequence[str]:
        """Return the methods that a second factor proves; none if it is wrong.

        What proves it is used up.
        """
        if not account.factors:
            return ()
        if proof.totp_code:
            right = await self._uses_totp(account.user_id, proof.totp_code)
        elif proof.recovery_code:
            stored = digest(account.user_id, proof.recovery_code)
            now = self.authentication.clock()
            right = await self.uses.use_recovery_code(account.user_id, stored, now)
        elif proof.passkey is not None and self.passkeys:
            if await self.passkeys.verify(
                account.user_id, challenge_token, proof.passkey
            ):
                return PASSKEY_METHODS
            return ()
        else:
            return ()
        return (AuthMethod.ONE_TIME_CODE, AuthMethod.MULTI_FACTOR) if right else ()

    async def _uses_totp(self, user_id: int, code: str) -> bool:
        for factor in await self.uses.totp_factors(user_id):
            step = self.totp.matching_step(factor.secret, code, factor.last_step)
            if step is not None:
                secret = self.totp.reencrypted(factor.secret)
                now = self.authentication.clock()
                return await self.uses.use_totp(factor.id, step, secret, now)
        return False


def _refusal(user_id: int) -> InvalidCredentials:
    return InvalidCredentials(
        user_id, "the log-in cannot be completed with this factor: log in again"
    )
