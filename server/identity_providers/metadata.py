"""What providers publish about themselves: metadata and keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.domain.identities.id_tokens import Jwk
from server.identity_providers.http_client import RequestFailed

MAX_KEYS = 100
_DEFAULT_AUTH_METHODS = ("client_secret_basic",)  # OpenID Connect Discovery 3


@dataclass(frozen=True, slots=True)
class Metadata:
    """The part of a provider's metadata that log-ins need.

    `sends_issuer` is whether every redirect back has the parameter `iss` (RFC 9207).
    """

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str
    auth_methods: Sequence[str]
    sends_issuer: bool


def read_metadata(
    document: Mapping[str, Any], issuer: str, check_url: Callable[[object], str]
) -> Metadata:
    """Return the metadata of a discovery document.

    `check_url` refuses endpoints that no request may go to. Raises RequestFailed, also
    if the document is that of another issuer.
    """
    if document.get("issuer") != issuer:
        raise RequestFailed("the discovery document names another issuer")
    methods = document.get("token_endpoint_auth_methods_supported")
    userinfo = document.get("userinfo_endpoint")
    return Metadata(
        authorization_endpoint=check_url(document.get("authorization_endpoint")),
        token_endpoint=check_url(document.get("token_endpoint")),
        jwks_uri=check_url(document.get("jwks_uri")),
        userinfo_endpoint="" if userinfo is None else check_url(userinfo),
        auth_methods=methods if isinstance(methods, list) else _DEFAULT_AUTH_METHODS,
        sends_issuer=document.get("authorization_response_iss_parameter_supported")
        is True,
    )


def read_keys(document: Mapping[str, Any]) -> Sequence[Jwk]:
    """Return the keys of a key set (RFC 7517). Raises RequestFailed."""
    keys = document.get("keys")
    if not isinstance(keys, list):
        raise RequestFailed("the key set has no keys")
    return [key for key in keys[:MAX_KEYS] if isinstance(key, dict)]
