"""Log-ins with a passkey alone. It has verified its user, and so is two factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from server.domain.auth.authentication import Authentication, Tokens
from server.domain.credentials.stores import Account
from server.domain.errors import InvalidCredentials
from server.domain.factors.authenticator_responses import (
    Assertion,
    InvalidResponse,
    read_assertion,
)
from server.domain.factors.challenges import ChallengeKind, Client, token_bytes_of
from server.domain.factors.methods import PASSKEY_METHODS
from server.domain.factors.passkeys import PasskeyProofs


@dataclass(frozen=True, slots=True)
class PasskeyLogIn:
    """The rules of log-ins with a passkey, on top of those of sessions."""

    authentication: Authentication
    proofs: PasskeyProofs

    async def begin(self) -> Mapping[str, Any]:
        """Return PublicKeyCredentialRequestOptionsJSON for a passkey of any user."""
        token = await self.proofs.challenges.begin(ChallengeKind.PASSKEY_LOG_IN)
        return self.proofs.relying_party.request_options(token_bytes_of(token))

    async def complete(self, response: Mapping[str, Any], client: Client) -> Tokens:
        """Open a session of the user whose passkey has signed the challenge.

        The challenge is used up first. Raises InvalidCredentials, whatever the cause.
        Takes as long for an unknown passkey as for a wrong signature (R2).
        """
        try:
            assertion = read_assertion(response)
        except InvalidResponse as error:
            raise _refusal(0) from error
        if not await self.proofs.use_challenge(assertion):
            raise _refusal(0)
        account = await self._proven(assertion)
        tokens = await self.authentication.open_session(
            account, client, PASSKEY_METHODS
        )
        if tokens is None:  # the account has changed meanwhile
            raise _refusal(account.user_id)
        return tokens

    async def _proven(self, assertion: Assertion) -> Account:
        """Return the account whose passkey has signed. Raises InvalidCredentials."""
        rules, proofs = self.authentication, self.proofs
        passkey = await proofs.store.by_credential(assertion.credential_id)
        user_id = passkey.user_id if passkey else 0
        account = await rules.accounts.account_by_id(user_id)
        state = proofs.relying_party.verify_assertion(
            assertion, passkey.public_key if passkey else None
        )
        if assertion.user_id != user_id:
            state = None
        if not (passkey and state and account and account.is_active):
            digest = sha256(assertion.credential_id).hexdigest()
            counted = f"user:{user_id}" if user_id else f"passkey:{digest}"
            await rules.count_failure(account, counted)
            raise _refusal(user_id)
        if not await proofs.uses(passkey, state):
            raise _refusal(user_id)
        return account


def _refusal(user_id: int) -> InvalidCredentials:
    return InvalidCredentials(
        user_id, "the log-in cannot be completed with this passkey: begin again"
    )
