"""Log-ins: a first factor opens a session, or begins the challenge of a second one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from server.domain.auth.authentication import Authentication, Tokens
from server.domain.credentials.stores import Account
from server.domain.errors import InvalidCredentials
from server.domain.factors.challenges import (
    LIFETIME,
    ChallengeKind,
    Challenges,
    Client,
    token_bytes_of,
)
from server.domain.factors.methods import AuthMethod, FactorType
from server.domain.limits import AccountLimit

MAX_ATTEMPTS = 2  # an account may change while its password is verified


@dataclass(frozen=True, slots=True)
class PendingLogIn:
    """A log-in that waits for a second factor.

    `passkey_options` are those of WebAuthn, None for an account without a passkey.
    """

    user_id: int
    token: str = field(repr=False)
    factors: Sequence[FactorType]
    expires_in: timedelta
    passkey_options: Mapping[str, Any] | None = None


class PasskeyRequests(Protocol):
    """Writes what a browser needs to ask for a passkey of an account."""

    async def options(self, user_id: int, challenge: bytes) -> Mapping[str, Any]:
        """Return PublicKeyCredentialRequestOptionsJSON for the account's passkeys."""


@dataclass(frozen=True, slots=True)
class LogIns:
    """The rules of log-ins, on top of those of sessions."""

    authentication: Authentication
    challenges: Challenges
    passkeys: PasskeyRequests | None = None

    async def with_password(
        self,
        identifier: str,
        password: str,
        client: Client,
        limits: Sequence[AccountLimit],
    ) -> Tokens | PendingLogIn:
        """Log a user in with a password.

        Raises InvalidCredentials, whatever the cause, and Overloaded. Takes as long
        for an unknown account as for a known one (R2).
        """
        user_id = 0
        for _ in range(MAX_ATTEMPTS):
            account = await self.authentication.authenticate(
                identifier, password, limits
            )
            outcome = await self.proceed(account, client, (AuthMethod.PASSWORD,))
            if outcome:
                return outcome
            user_id = account.user_id
        raise InvalidCredentials(user_id)

    async def proceed(
        self, account: Account, client: Client, amr: Sequence[str]
    ) -> Tokens | PendingLogIn | None:
        """Log a user in whose first factor, of the methods in `amr`, was right.

        Returns the tokens of a new session, or what waits for the second factor of the
        account; None if the account has changed since it was read.
        """
        if not account.factors:
            return await self.authentication.open_session(account, client, amr)
        token = await self.challenges.begin(
            ChallengeKind.LOG_IN,
            client,
            user_id=account.user_id,
            version=account.version,
            data={"amr": list(amr)},
        )
        options = None
        if FactorType.PASSKEY in account.factors and self.passkeys:
            options = await self.passkeys.options(
                account.user_id, token_bytes_of(token)
            )
        return PendingLogIn(
            user_id=account.user_id,
            token=token,
            factors=(*account.factors, FactorType.RECOVERY_CODE),
            expires_in=LIFETIME,
            passkey_options=options,
        )
