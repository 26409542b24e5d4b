"""Passkeys: creating them, and proving that one is present.

A challenge's token is what a passkey signs, so that its ceremony needs no other token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.credentials import base64url
from server.domain.errors import FactorNotFound, PasskeyInvalid
from server.domain.factors.authenticator_responses import (
    Assertion,
    Creation,
    InvalidResponse,
    read_assertion,
    read_creation,
)
from server.domain.factors.challenges import ChallengeKind, Challenges, token_bytes_of
from server.domain.factors.factors import Confirmation, Factor, Factors
from server.domain.factors.relying_party import (
    AuthenticatorState,
    Credential,
    NewPasskey,
    RelyingParty,
)

DEFAULT_NAME = "Passkey"


@dataclass(frozen=True, slots=True)
class Passkey:
    """A confirmed passkey."""

    id: int
    user_id: int
    public_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PasskeyRequest:
    """A passkey that is to be confirmed, with what a browser creates it by."""

    id: int
    options: Mapping[str, Any]


class PasskeyStore(Protocol):
    """Stores passkeys. Every change is audited."""

    async def add(self, user_id: int, name: str, now: datetime) -> int:
        """Write a passkey without effect in place of an earlier one; return its id.

        Raises TooManyFactors.
        """

    async def is_unconfirmed(self, user_id: int, factor_id: int) -> bool:
        """Return whether the user has this passkey, and it is not confirmed."""

    async def confirm(
        self,
        caller: Caller,
        factor_id: int,
        passkey: NewPasskey,
        code_digests: Sequence[bytes],
        now: datetime,
    ) -> tuple[Factor, bool]:
        """Confirm a passkey; return it, and whether it is the first factor.

        The first one writes the recovery codes. The caller's session has two factors
        from now on, and the other sessions end. Raises FactorNotFound, TokenInvalid;
        PasskeyInvalid if an account has this passkey already.
        """

    async def credentials(self, user_id: int) -> Sequence[Credential]:
        """Return the confirmed passkeys of a user."""

    async def by_credential(self, credential_id: bytes) -> Passkey | None:
        """Return the confirmed passkey with this credential id."""

    async def use(
        self, passkey_id: int, state: AuthenticatorState, now: datetime
    ) -> bool:
        """Note a use of a passkey; False if its counter is not above the last one.

        A passkey that does not count has the counter 0 always.
        """

    async def report_copy(self, passkey_id: int, now: datetime) -> None:
        """Inform the owner of a passkey whose counter has gone back, and audit it."""


@dataclass(frozen=True, slots=True)
class PasskeyCreation:
    """The rules of new passkeys, on top of those of factors."""

    factors: Factors
    store: PasskeyStore
    challenges: Challenges
    relying_party: RelyingParty

    async def create(self, caller: Caller, name: str) -> PasskeyRequest:
        """Return what a browser creates a passkey by; it has no effect yet.

        Raises TooManyFactors, StepUpRequired.
        """
        account = await self.factors.authorized(caller)
        user_id = account.user_id
        factor_id = await self.store.add(
            user_id, name or DEFAULT_NAME, self.factors.clock()
        )
        token = await self.challenges.begin(
            ChallengeKind.PASSKEY_CREATION, user_id=user_id, data={"factor": factor_id}
        )
        options = self.relying_party.creation_options(
            user_id,
            account.username,
            token_bytes_of(token),
            await self.store.credentials(user_id),
        )
        return PasskeyRequest(factor_id, options)

    async def confirm(
        self, caller: Caller, factor_id: int, response: Mapping[str, Any]
    ) -> Confirmation:
        """Confirm a passkey with the response of its authenticator.

        Raises FactorNotFound, PasskeyInvalid, StepUpRequired.
        """
        await self.factors.authorized(caller)
        if not await self.store.is_unconfirmed(caller.user_id, factor_id):
            raise FactorNotFound(factor_id)
        try:
            creation = read_creation(response)
            await self._use_challenge(caller, factor_id, creation)
            passkey = self.relying_party.verify_creation(creation)
        except InvalidResponse as error:
            raise PasskeyInvalid(str(error)) from error
        codes, digests = self.factors.new_codes(caller.user_id)
        factor, is_first = await self.store.confirm(
            caller, factor_id, passkey, digests, self.factors.clock()
        )
        return Confirmation(factor, codes if is_first else ())

    async def _use_challenge(
        self, caller: Caller, factor_id: int, creation: Creation
    ) -> None:
        """Use up the challenge of this factor. Raises InvalidResponse."""
        token = base64url.encode(creation.challenge)
        challenge = await self.challenges.attempt(ChallengeKind.PASSKEY_CREATION, token)
        is_own = challenge is not None and (
            challenge.user_id == caller.user_id
            and challenge.data.get("factor") == factor_id
        )
        if not (challenge and is_own and await self.challenges.consume(challenge)):
            raise InvalidResponse("the challenge is not pending for this passkey")


@dataclass(frozen=True, slots=True)
class PasskeyProofs:
    """Asks for a passkey, and verifies that one has signed."""

    store: PasskeyStore
    challenges: Challenges
    relying_party: RelyingParty
    clock: Clock

    async def options(self, user_id: int, challenge: bytes) -> Mapping[str, Any]:
        """Return PublicKeyCredentialRequestOptionsJSON for the account's passkeys."""
        allowed = await self.store.credentials(user_id)
        return self.relying_party.request_options(challenge, allowed)

    async def verify(
        self, user_id: int, challenge_token: str, response: Mapping[str, Any]
    ) -> bool:
        """Return whether a passkey of the user has signed a challenge.

        Without a token, the challenge is one of BeginPasskeyLogin, which it uses up.
        """
        try:
            assertion = read_assertion(response)
            if challenge_token:
                is_pending = assertion.challenge == token_bytes_of(challenge_token)
            else:
                is_pending = await self.use_challenge(assertion)
        except (InvalidResponse, ValueError):
            return False
        if not is_pending or assertion.user_id not in (None, user_id):
            return False
        passkey = await self.store.by_credential(assertion.credential_id)
        if passkey is None or passkey.user_id != user_id:
            return False
        state = self.relying_party.verify_assertion(assertion, passkey.public_key)
        return state is not None and await self.uses(passkey, state)

    async def use_challenge(self, assertion: Assertion) -> bool:
        """Use up the challenge of BeginPasskeyLogin that was signed, right or wrong.

        False if there is none.
        """
        token = base64url.encode(assertion.challenge)
        challenge = await self.challenges.attempt(ChallengeKind.PASSKEY_LOG_IN, token)
        return challenge is not None and await self.challenges.consume(challenge)

    async def uses(self, passkey: Passkey, state: AuthenticatorState) -> bool:
        """Note the use of a passkey; False if its counter has gone back.

        Then two authenticators have the same key, and the owner is told. The signature
        was right: nobody else can cause such a message.
        """
        now = self.clock()
        if await self.store.use(passkey.id, state, now):
            return True
        await self.store.report_copy(passkey.id, now)
        return False
