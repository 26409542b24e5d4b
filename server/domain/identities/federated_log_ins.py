"""Log-ins with identity providers: authorization code with PKCE, state and nonce.

The state is the token of a challenge. The client also keeps a nonce, which the
provider never sees: whoever sees the redirect, or makes a browser open one, cannot
complete the log-in. The verifier of PKCE (RFC 7636) and the nonce of the ID token are
derived from it, so that the stored challenge alone is of no use.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from hmac import compare_digest
from secrets import token_bytes, token_hex

from server.domain.accounts.users import Role, normalize_identifier
from server.domain.auth.authentication import Tokens
from server.domain.auth.log_ins import LogIns, PendingLogIn
from server.domain.callers import Caller
from server.domain.credentials import base64url
from server.domain.credentials.stores import Account
from server.domain.errors import (
    EmailTaken,
    FederatedLoginInvalid,
    IdentityNotLinked,
    IdentityProviderNotFound,
    IdentityTaken,
    ImpersonationForbidden,
    StepUpRequired,
    UsernameTaken,
)
from server.domain.factors.challenges import Challenge, ChallengeKind, Client
from server.domain.factors.methods import AuthMethod, FactorLevel
from server.domain.identities.identities import (
    IdentityStore,
    NewAccount,
    authorized_account,
)
from server.domain.identities.providers import (
    AuthorizationRequest,
    AuthorizationResponse,
    ExternalIdentity,
    IdentityProvider,
)

LIFETIME = timedelta(minutes=10)
LINK_MAX_AUTH_AGE = timedelta(minutes=10)
MAX_ATTEMPTS = 3  # another call may change the account or take a name meanwhile
_NONCE_BYTES = 32
_EMAIL = re.compile(r"[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,}")
_MAX_EMAIL_LENGTH = 255
_USERNAME = re.compile(r"[A-Za-z0-9_]{3,50}")


@dataclass(frozen=True, slots=True)
class BegunLogIn:
    """A log-in that a provider's page continues."""

    authorization_url: str = field(repr=False)
    state: str = field(repr=False)
    client_nonce: str = field(repr=False)
    expires_in: timedelta


@dataclass(frozen=True, slots=True)
class RedirectParameters:
    """The parameters of the redirect back, and what the client has kept."""

    state: str = field(repr=False)
    code: str = field(repr=False)
    iss: str
    client_nonce: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class FederatedLogIns:
    """The rules of log-ins with providers, on top of those of log-ins.

    `required_roles` are the roles whose users need a second factor.
    """

    log_ins: LogIns
    store: IdentityStore
    providers: Mapping[str, IdentityProvider]
    required_roles: Collection[Role] = ()

    async def begin(self, provider_id: str) -> BegunLogIn:
        """Begin a log-in.

        Raises IdentityProviderNotFound, IdentityProviderUnavailable.
        """
        provider = self.providers.get(provider_id)
        if provider is None:
            raise IdentityProviderNotFound(provider_id)
        client_nonce = base64url.encode(token_bytes(_NONCE_BYTES))
        state = await self.log_ins.challenges.begin(
            ChallengeKind.FEDERATED_LOG_IN,
            data={"provider": provider_id, "client": _derived("client", client_nonce)},
            lifetime=LIFETIME,
        )
        request = _authorization_request(state, client_nonce)
        url = await provider.authorization_url(request)
        return BegunLogIn(url, state, client_nonce, LIFETIME)

    async def complete(
        self, parameters: RedirectParameters, access_token: str, client: Client
    ) -> Tokens | PendingLogIn:
        """Complete a log-in, which can be done once.

        With an access token, the identity is linked to its account. Raises
        FederatedLoginInvalid, IdentityNotLinked, IdentityTaken,
        IdentityProviderUnavailable; for the access token, TokenInvalid, StepUpRequired,
        ImpersonationForbidden.
        """
        challenge = await self._challenge(parameters)
        owner = await self._owner(access_token) if access_token else None
        provider = self.providers.get(challenge.data["provider"])
        if provider is None or not await self.log_ins.challenges.consume(challenge):
            raise FederatedLoginInvalid("the state was used")
        identity = await provider.identity(
            AuthorizationResponse(
                code=parameters.code,
                iss=parameters.iss,
                code_verifier=_derived("verifier", parameters.client_nonce),
                nonce=_derived("nonce", parameters.client_nonce),
            )
        )
        if owner:
            await self._link(identity, *owner)
        return await self._log_in(identity, client)

    async def _challenge(self, parameters: RedirectParameters) -> Challenge:
        challenge = await self.log_ins.challenges.attempt(
            ChallengeKind.FEDERATED_LOG_IN, parameters.state
        )
        if challenge is None:
            raise FederatedLoginInvalid("the state is unknown, expired or used")
        digest = _derived("client", parameters.client_nonce)
        if not compare_digest(digest, challenge.data["client"]):
            raise FederatedLoginInvalid("another client began the log-in")
        return challenge

    async def _owner(self, access_token: str) -> tuple[Account, Caller]:
        """Return the account to link to, after a recent log-in of its owner."""
        rules = self.log_ins.authentication
        caller = (await rules.introspect(access_token)).caller
        if caller.actor_id:
            raise ImpersonationForbidden(
                "an admin who acts as a user may not link an identity"
            )
        age = rules.clock().timestamp() - caller.auth_time
        if age > LINK_MAX_AUTH_AGE.total_seconds():
            raise StepUpRequired(max_age=LINK_MAX_AUTH_AGE)
        if caller.role in self.required_roles and caller.factor_level < FactorLevel.TWO:
            raise StepUpRequired(second_factor=True)
        return await authorized_account(rules.accounts, caller), caller

    async def _link(
        self, identity: ExternalIdentity, account: Account, caller: Caller
    ) -> None:
        now = self.log_ins.authentication.clock()
        user_id = await self.store.use(identity, now)
        if not user_id:
            await self.store.link(identity, account, caller, now)
        elif user_id != account.user_id:
            raise IdentityTaken

    async def _log_in(
        self, identity: ExternalIdentity, client: Client
    ) -> Tokens | PendingLogIn:
        rules = self.log_ins.authentication
        for _ in range(MAX_ATTEMPTS):
            user_id = await self._user(identity)
            account = await rules.accounts.account_by_id(user_id)
            if account is None or not account.is_active:
                raise FederatedLoginInvalid("the account is deleted or disabled")
            outcome = await self.log_ins.proceed(
                account, client, (AuthMethod.FEDERATED,)
            )
            if outcome:
                return outcome
        raise FederatedLoginInvalid("the account keeps changing")

    async def _user(self, identity: ExternalIdentity) -> int:
        """Return the user of an identity.

        A new one is created if its address is verified and no account has it.
        """
        now = self.log_ins.authentication.clock()
        for username in _usernames(identity.username):
            if user_id := await self.store.use(identity, now):
                return user_id
            email = normalize_identifier(identity.email)
            if not identity.email_verified or not _is_valid_email(email):
                raise IdentityNotLinked
            new = NewAccount(email, username)
            try:
                return await self.store.create_account(identity, new, now)
            except (UsernameTaken, IdentityTaken):
                continue
            except EmailTaken:
                # by another log-in with the same identity, at the same time?
                if user_id := await self.store.use(identity, now):
                    return user_id
                raise IdentityNotLinked from None
        raise FederatedLoginInvalid("no username is free")


def _authorization_request(state: str, client_nonce: str) -> AuthorizationRequest:
    verifier = _derived("verifier", client_nonce)
    return AuthorizationRequest(
        state=state,
        nonce=_derived("nonce", client_nonce),
        code_challenge=base64url.encode(sha256(verifier.encode()).digest()),
    )


def _derived(purpose: str, client_nonce: str) -> str:
    """Return 256 bits that only the client's nonce leads to."""
    text = f"{purpose} {client_nonce}"
    return base64url.encode(sha256(text.encode(errors="replace")).digest())


def _is_valid_email(email: str) -> bool:
    return len(email) <= _MAX_EMAIL_LENGTH and bool(_EMAIL.fullmatch(email))


def _usernames(preferred: str) -> Sequence[str]:
    """Return usernames to try: what the user prefers, then random ones.

    None is made of the e-mail address: usernames are public, addresses are not.
    """
    random = [f"user_{token_hex(5)}" for _ in range(MAX_ATTEMPTS)]
    return [preferred, *random] if _USERNAME.fullmatch(preferred) else random
