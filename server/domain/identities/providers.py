"""Identity providers, as the rules of log-ins see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """What a log-in sends to the provider's page (OpenID Connect Core 3.1.2.1)."""

    state: str = field(repr=False)
    nonce: str = field(repr=False)
    code_challenge: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuthorizationResponse:
    """What the provider sent back, and the values that the log-in began with.

    `iss` is the parameter of RFC 9207, "" if the provider sent none.
    """

    code: str = field(repr=False)
    iss: str
    code_verifier: str = field(repr=False)
    nonce: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ExternalIdentity:
    """An account at a provider: `issuer` and `subject` identify it for ever.

    `email` and `username` may change, and are "" if the provider sends none.
    """

    provider_id: str
    provider_name: str
    issuer: str
    subject: str
    email: str = ""
    email_verified: bool = False
    username: str = ""


class IdentityProvider(Protocol):
    """A configured provider."""

    @property
    def id(self) -> str:
        """The operator's id of the provider."""

    @property
    def name(self) -> str:
        """The name that users see."""

    async def authorization_url(self, request: AuthorizationRequest) -> str:
        """Return the address of the page on which a user logs in.

        Raises IdentityProviderUnavailable.
        """

    async def identity(self, response: AuthorizationResponse) -> ExternalIdentity:
        """Return who has logged in, from the verified ID token.

        Raises FederatedLoginInvalid, IdentityProviderUnavailable.
        """
