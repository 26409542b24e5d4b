"""Whose access token links an identity, and what a log-in sends to the provider."""

import asyncio
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from typing import Any, cast

import pytest

from server.domain.accounts.users import Role
from server.domain.auth.log_ins import LogIns
from server.domain.callers import Caller
from server.domain.clock import Clock as ReadClock
from server.domain.credentials.stores import Account
from server.domain.errors import (
    FederatedLoginInvalid,
    ImpersonationForbidden,
    StepUpRequired,
    TokenInvalid,
)
from server.domain.factors.challenges import Challenges, Client
from server.domain.factors.methods import FactorLevel, FactorType
from server.domain.identities.federated_log_ins import (
    FederatedLogIns,
    RedirectParameters,
)
from server.domain.identities.providers import (
    AuthorizationRequest,
    AuthorizationResponse,
    ExternalIdentity,
)
from tests.fakes import NOON, Clock, FakeChallenges

NOW = int(NOON.timestamp())
CLIENT = Client("192.0.2.1", "device")


@dataclass
class Provider:
    """Notes what it receives; no user ever logs in."""

    id: str = "fake"
    name: str = "Fake"
    requests: list[AuthorizationRequest] = field(default_factory=list)
    responses: list[AuthorizationResponse] = field(default_factory=list)

    async def authorization_url(self, request: AuthorizationRequest) -> str:
        self.requests.append(request)
        return "https://idp.test/"

    async def identity(self, response: AuthorizationResponse) -> ExternalIdentity:
        self.responses.append(response)
        raise FederatedLoginInvalid("nobody logs in")


@dataclass
class Rules:
    """The rules of sessions, for one caller."""

    caller: Caller
    account: Account | None
    clock: ReadClock = field(default_factory=Clock)

    @property
    def accounts(self) -> "Rules":
        return self

    async def account_by_id(self, user_id: int) -> Account | None:
        return self.account

    async def introspect(self, token: str) -> "Rules":
        return self


def log_ins(
    provider: Provider, caller: Caller, account: Account | None, *roles: Role
) -> FederatedLogIns:
    rules: Any = Rules(caller, account)
    challenges = Challenges(FakeChallenges(), rules.clock)
    return FederatedLogIns(
        LogIns(rules, challenges), cast(Any, None), {"fake": provider}, roles
    )


async def complete(federated: FederatedLogIns, access_token: str = "at") -> None:
    begun = await federated.begin("fake")
    parameters = RedirectParameters(begun.state, "code", "", begun.client_nonce)
    await federated.complete(parameters, access_token, CLIENT)


def account(*factors: FactorType, is_active: bool = True) -> Account:
    return Account(1, "ana", "hash", Role.TEACHER, is_active, factors=factors)


def caller(**changes: Any) -> Caller:
    values = {"role": Role.TEACHER, "auth_time": NOW, "factor_level": FactorLevel.ONE}
    return Caller(1, "session", **{**values, **changes})


async def test_verifier_and_nonce_are_bound_to_the_client() -> None:
    """Both 256 bits, of the client's nonce; the challenge is that of RFC 7636."""
    provider = Provider()
    federated = log_ins(provider, caller(), account())
    calls = [complete(federated, "") for _ in range(2)]
    await asyncio.gather(*calls, return_exceptions=True)
    sent = [vars_of(request) for request in provider.requests]
    assert all(len({*values}) == 2 for values in zip(*sent, strict=True))
    for request, response in zip(provider.requests, provider.responses, strict=True):
        digest = sha256(response.code_verifier.encode()).digest()
        challenge = urlsafe_b64encode(digest).decode().rstrip("=")
        assert request.code_challenge == challenge
        assert request.nonce == response.nonce
        assert len(response.code_verifier) == 43


def vars_of(request: AuthorizationRequest) -> list[str]:
    return [request.state, request.nonce, request.code_challenge]


@pytest.mark.parametrize(
    ("who", "owner", "roles", "error"),
    [
        (caller(actor_id=7), account(), [], ImpersonationForbidden),
        (caller(auth_time=NOW - 601), account(), [], StepUpRequired),
        (caller(), account(), [Role.TEACHER], StepUpRequired),
        (caller(), account(FactorType.TOTP), [], StepUpRequired),
        (caller(), account(is_active=False), [], TokenInvalid),
        (caller(), None, [], TokenInvalid),
    ],
)
async def test_link_is_refused(
    who: Caller, owner: Account | None, roles: list[Role], error: type[Exception]
) -> None:
    """Before the provider sees the code, and without using up the state."""
    provider = Provider()
    federated = log_ins(provider, who, owner, *roles)
    with pytest.raises(error):
        await complete(federated)
    assert provider.responses == []


@pytest.mark.parametrize(
    ("who", "owner", "roles"),
    [
        (caller(auth_time=NOW - 600), account(), []),
        (caller(), account(), [Role.ADMIN]),
        (caller(factor_level=FactorLevel.TWO), account(), [Role.TEACHER]),
        (caller(factor_level=FactorLevel.TWO), account(FactorType.TOTP), []),
    ],
)
async def test_link_is_allowed(who: Caller, owner: Account, roles: list[Role]) -> None:
    provider = Provider()
    with pytest.raises(FederatedLoginInvalid):
        await complete(log_ins(provider, who, owner, *roles))
    assert len(provider.responses) == 1


async def test_log_in_lasts_ten_minutes() -> None:
    provider = Provider()
    federated = log_ins(provider, caller(), account())
    begun = await federated.begin("fake")
    parameters = RedirectParameters(begun.state, "code", "", begun.client_nonce)
    clock = cast(Clock, federated.log_ins.challenges.clock)
    clock.advance(begun.expires_in.total_seconds())
    with pytest.raises(FederatedLoginInvalid):
        await federated.complete(parameters, "", CLIENT)
    assert provider.responses == []
    assert begun.expires_in == timedelta(minutes=10)
