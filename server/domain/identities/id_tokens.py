"""ID tokens: verified as OpenID Connect Core 3.1.3.7 and RFC 8725 demand.

Only signatures with a key of the provider's key set are accepted: never `none`, and
never HMAC, whose key would be the client secret or, by confusion, a public key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.domain.errors import FederatedLoginInvalid

# The keys (RFC 7517, RFC 8037) of each algorithm
KEYS: Mapping[str, Mapping[str, str]] = {
    "RS256": {"kty": "RSA"},
    "PS256": {"kty": "RSA"},
    "ES256": {"kty": "EC", "crv": "P-256"},
    "EdDSA": {"kty": "OKP", "crv": "Ed25519"},
}
CLOCK_SKEW = timedelta(seconds=60)
MAX_TOKEN_LENGTH = 64 * 1024
MIN_RSA_BITS = 2048
Jwk = Mapping[str, Any]


class _Claims(BaseModel):
    """The claims that every ID token has; nothing is converted."""

    model_config = ConfigDict(strict=True)

    sub: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$")]
    aud: str | list[str]
    azp: str | None = None
    exp: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    iat: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    nonce: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What an ID token must contain."""

    issuer: str
    client_id: str
    nonce: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """Which key of the provider has signed: `key_id` is "" if the token names none."""

    algorithm: str
    key_id: str


def read_header(token: str) -> TokenHeader:
    """Return the header of a token, which is not verified yet.

    Raises FederatedLoginInvalid for an algorithm that is not accepted.
    """
    if len(token) > MAX_TOKEN_LENGTH:
        raise FederatedLoginInvalid("the ID token is too long")
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError as error:
        raise FederatedLoginInvalid(f"ID token: {type(error).__name__}") from error
    algorithm, key_id = str(header.get("alg")), header.get("kid", "")
    if algorithm not in KEYS or "crit" in header or not isinstance(key_id, str):
        raise FederatedLoginInvalid(f"ID token: algorithm {algorithm[:20]!r}")
    return TokenHeader(algorithm, key_id)


def find_key(header: TokenHeader, keys: Sequence[Jwk]) -> Jwk | None:
    """Return the key that a header names; without a name, the only one that fits."""
    fitting = [
        key
        for key in keys
        if KEYS[header.algorithm].items() <= key.items()
        and key.get("use", "sig") == "sig"
        and key.get("alg", header.algorithm) == header.algorithm
        and (not header.key_id or key.get("kid") == header.key_id)
    ]
    return fitting[0] if len(fitting) == 1 else None


def verify(
    token: str, header: TokenHeader, key: Jwk, expected: Expected, now: datetime
) -> Mapping[str, Any]:
    """Return the claims of an ID token. Raises FederatedLoginInvalid."""
    try:
        public = jwt.PyJWK(dict(key), header.algorithm)
        if isinstance(public.key, rsa.RSAPublicKey):
            _check(public.key.key_size >= MIN_RSA_BITS, "the RSA key is too short")
        payload: dict[str, Any] = jwt.decode(
            token,
            public,
            algorithms=[header.algorithm],
            audience=expected.client_id,
            issuer=expected.issuer,
            options={
                # checked below, by the clock of this service
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
        claims = _Claims.model_validate(payload)
    except (jwt.PyJWTError, ValidationError, ValueError, TypeError) as error:
        raise FederatedLoginInvalid(f"ID token: {type(error).__name__}") from error
    _check_claims(claims, expected, now)
    return payload


def _check_claims(claims: _Claims, expected: Expected, now: datetime) -> None:
    is_single = isinstance(claims.aud, str) or len(claims.aud) == 1
    authorized = claims.azp == expected.client_id
    _check(authorized if claims.azp is not None else is_single, "wrong azp")
    _check(claims.nonce == expected.nonce, "wrong nonce")
    _check(now.timestamp() < claims.exp + CLOCK_SKEW.total_seconds(), "expired")
    _check(claims.iat <= (now + CLOCK_SKEW).timestamp(), "issued in the future")


def _check(condition: bool, cause: str) -> None:
    if not condition:
        raise FederatedLoginInvalid(f"ID token: {cause}")
