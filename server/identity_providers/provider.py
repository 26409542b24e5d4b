"""An OpenID Connect provider: its page, its token endpoint and its keys."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus, urlencode

from server.domain.clock import Clock
from server.domain.errors import FederatedLoginInvalid, IdentityProviderUnavailable
from server.domain.identities import id_tokens
from server.domain.identities.id_tokens import Expected, Jwk
from server.domain.identities.providers import (
    AuthorizationRequest,
    AuthorizationResponse,
    ExternalIdentity,
)
from server.identity_providers.cached_document import CachedDocument
from server.identity_providers.http_client import (
    ProviderHttp,
    RequestFailed,
    RequestRefused,
)
from server.identity_providers.metadata import Metadata, read_keys, read_metadata

_BASIC, _POST = "client_secret_basic", "client_secret_post"


@dataclass(frozen=True, slots=True)
class Client:
    """This service, as it is registered with a provider."""

    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str
    scopes: Sequence[str]


class OpenIdProvider:
    """A provider, found by discovery (OpenID Connect Discovery 1.0)."""

    def __init__(
        self,
        provider_id: str,
        name: str,
        issuer: str,
        client: Client,
        http: ProviderHttp,
        clock: Clock,
    ) -> None:
        self.id = provider_id
        self.name = name
        self.issuer = issuer
        self._client = client
        self._http = http
        self._clock = clock
        self._metadata = CachedDocument(self._fetch_metadata, clock)
        self._keys = CachedDocument(self._fetch_keys, clock)

    async def check(self) -> int:
        """Read what the provider publishes; return the number of its keys.

        Raises RequestFailed.
        """
        await self._metadata.get()
        return len(await self._keys.get())

    async def authorization_url(self, request: AuthorizationRequest) -> str:
        """Return the address of the page on which a user logs in.

        Raises IdentityProviderUnavailable.
        """
        endpoint = (await self._read_metadata()).authorization_endpoint
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self._client.client_id,
                "redirect_uri": self._client.redirect_uri,
                "scope": " ".join(self._client.scopes),
                "state": request.state,
                "nonce": request.nonce,
                "code_challenge": request.code_challenge,
                "code_challenge_method": "S256",
            }
        )
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{query}"

    async def identity(self, response: AuthorizationResponse) -> ExternalIdentity:
        """Return who has logged in, from the verified ID token.

        Raises FederatedLoginInvalid, IdentityProviderUnavailable.
        """
        metadata = await self._read_metadata()
        self._check_issuer(response.iss, metadata)
        tokens = await self._exchange(metadata, response)
        expected = Expected(self.issuer, self._client.client_id, response.nonce)
        claims = await self._verify(tokens.get("id_token"), expected)
        if "email" not in claims:
            claims = {**await self._user_info(metadata, tokens, claims), **claims}
        return ExternalIdentity(
            provider_id=self.id,
            provider_name=self.name,
            issuer=self.issuer,
            subject=claims["sub"],
            email=_text(claims.get("email")),
            # some providers send booleans as text
            email_verified=claims.get("email_verified") in (True, "true"),
            username=_text(claims.get("preferred_username")),
        )

    def _check_issuer(self, iss: str, metadata: Metadata) -> None:
        """Refuse the response of another provider (RFC 9207 2.4)."""
        if iss != self.issuer and (iss or metadata.sends_issuer):
            raise FederatedLoginInvalid("another issuer, or none, has responded")

    async def _exchange(
        self, metadata: Metadata, response: AuthorizationResponse
    ) -> Mapping[str, Any]:
        """Return the token response for a code (OpenID Connect Core 3.1.3)."""
        client = self._client
        form = {
            "grant_type": "authorization_code",
            "code": response.code,
            "redirect_uri": client.redirect_uri,
            "code_verifier": response.code_verifier,
        }
        authorization = ""
        if not client.client_secret:
            form["client_id"] = client.client_id
        elif _BASIC in metadata.auth_methods:
            authorization = _basic(client.client_id, client.client_secret)
        else:
            form |= {
                "client_id": client.client_id,
                "client_secret": client.client_secret,
            }
        try:
            return await self._http.post(metadata.token_endpoint, form, authorization)
        except RequestRefused as error:
            if str(error) == "invalid_grant":
                raise FederatedLoginInvalid("the provider refused the code") from None
            raise self._unavailable(f"the provider answered {error}") from None
        except RequestFailed as error:
            raise self._unavailable(str(error)) from error

    async def _verify(self, token: object, expected: Expected) -> Mapping[str, Any]:
        if not isinstance(token, str):
            raise FederatedLoginInvalid("the provider sent no ID token")
        header = id_tokens.read_header(token)
        try:
            key = id_tokens.find_key(header, await self._keys.get())
            if key is None:
                key = id_tokens.find_key(header, await self._keys.refresh())
        except RequestFailed as error:
            raise self._unavailable(str(error)) from error
        if key is None:
            raise FederatedLoginInvalid("ID token: unknown key")
        return id_tokens.verify(token, header, key, expected, self._clock())

    async def _user_info(
        self,
        metadata: Metadata,
        tokens: Mapping[str, Any],
        claims: Mapping[str, Any],
    ) -> Mapping[str, Any]:
        """Return the claims of UserInfo, for providers that put no e-mail elsewhere.

        A response about another subject is refused (OpenID Connect Core 5.3.4).
        """
        access_token = tokens.get("access_token")
        if not (metadata.userinfo_endpoint and _is_bearer_token(access_token)):
            return {}
        try:
            info = await self._http.get(
                metadata.userinfo_endpoint, f"Bearer {access_token}"
            )
        except (RequestFailed, RequestRefused) as error:
            raise self._unavailable(str(error)) from error
        if info.get("sub") != claims["sub"]:
            raise FederatedLoginInvalid("UserInfo is about another subject")
        return info

    async def _read_metadata(self) -> Metadata:
        try:
            return await self._metadata.get()
        except RequestFailed as error:
            raise self._unavailable(str(error)) from error

    async def _fetch_metadata(self) -> Metadata:
        url = self.issuer.rstrip("/") + "/.well-known/openid-configuration"
        document = await self._http.get(url)
        return read_metadata(document, self.issuer, self._http.check_url)

    async def _fetch_keys(self) -> Sequence[Jwk]:
        jwks_uri = (await self._metadata.get()).jwks_uri
        return read_keys(await self._http.get(jwks_uri))

    def _unavailable(self, cause: str) -> IdentityProviderUnavailable:
        return IdentityProviderUnavailable(f"{self.id}: {cause}")


def _basic(client_id: str, secret: str) -> str:
    """Return the header of RFC 6749 2.3.1: both parts are form-encoded first."""
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
    return f"Basic {b64encode(pair.encode()).decode()}"


def _is_bearer_token(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


def _text(value: object) -> str:
    return value if isinstance(value, str) and value.isprintable() else ""
