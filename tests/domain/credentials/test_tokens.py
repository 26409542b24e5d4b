"""Access tokens: only valid, unaltered tokens of this service are accepted."""

import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from server.domain.credentials.tokens import (
    LEEWAY,
    LIFETIME,
    AccessTokens,
    KeyRing,
    KeyState,
    SigningKey,
)
from server.domain.errors import TokenInvalid
from tests.fakes import Clock

KEY = SigningKey.generate(KeyState.ACTIVE)
OTHER = SigningKey.generate(KeyState.ACTIVE)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> AccessTokens:
    ring = KeyRing()
    ring.replace([KEY])
    return AccessTokens("https://us", "blatam", ring, clock)


def issue(tokens: AccessTokens, clock: Clock) -> str:
    return tokens.issue(7, "a" * 32, 1, clock.now)


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def signed(claims: dict[str, Any], key: SigningKey = KEY, **header: Any) -> str:
    headers = {"typ": "at+jwt", "kid": key.kid} | header
    return jwt.encode(claims, key.private, algorithm="ES256", headers=headers)


def hmac_signed(claims: dict[str, Any], key: bytes, header: dict[str, Any]) -> str:
    """Sign by hand, as an attacker would: libraries refuse to."""
    parts = [json.dumps(part).encode() for part in (header, claims)]
    text = b".".join(urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    tag = urlsafe_b64encode(hmac.digest(key, text, "sha256")).rstrip(b"=")
    return (text + b"." + tag).decode()


def test_access_token_round_trip(tokens: AccessTokens, clock: Clock) -> None:
    """R15: every claim of RFC 9068 is present, and the values are read back."""
    token = issue(tokens, clock)
    claims = tokens.verify(token)
    assert (claims.user_id, claims.session_id, claims.role) == (7, "a" * 32, 1)
    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"
    assert set(claims_of(token)) == {
        "iss", "aud", "sub", "client_id", "sid", "role", "auth_time", "iat", "exp",
        "jti", "acr", "amr",
    }  # fmt: skip


def test_access_token_expires(tokens: AccessTokens, clock: Clock) -> None:
    """Fifteen minutes and a minute's leeway, also for a cached token."""
    token = issue(tokens, clock)
    tokens.verify(token)
    clock.advance((LIFETIME + LEEWAY).total_seconds())
    tokens.verify(token)
    clock.advance(1)
    with pytest.raises(TokenInvalid):
        tokens.verify(token)
    with pytest.raises(TokenInvalid):
        replace(tokens, _verified={}).verify(token)


@pytest.mark.parametrize(
    "missing",
    ["iss", "aud", "sub", "client_id", "sid", "role", "auth_time", "iat", "exp", "jti"],
)
def test_token_claims_are_required(
    tokens: AccessTokens, clock: Clock, missing: str
) -> None:
    """R15: a token without one of them is refused, although its signature is valid."""
    claims = claims_of(issue(tokens, clock))
    tokens.verify(signed(claims))
    del claims[missing]
    with pytest.raises(TokenInvalid):
        tokens.verify(signed(claims))


@pytest.mark.parametrize(
    ("claim", "value"),
    [("iss", "https://them"), ("aud", "other"), ("sub", "x"), ("exp", "soon")],
)
def test_token_claims_are_exact(
    tokens: AccessTokens, clock: Clock, claim: str, value: object
) -> None:
    """R15: another issuer, audience or type of value is refused."""
    claims = claims_of(issue(tokens, clock)) | {claim: value}
    with pytest.raises(TokenInvalid):
        tokens.verify(signed(claims))


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf", "auth_time"])
@pytest.mark.parametrize(
    "convert",
    [str, lambda time: f" {time} ", float, bool, lambda _: 10**18, lambda _: -1, list],
    ids=["text", "spaced text", "float", "boolean", "huge", "negative", "list"],
)
def test_token_times_are_whole_numbers(
    tokens: AccessTokens, clock: Clock, claim: str, convert: Callable[[Any], Any]
) -> None:
    """RFC 7519 4.1.4: a NumericDate is a JSON number; these tokens use seconds."""
    claims = claims_of(issue(tokens, clock))
    time = [claims["iat"]] if convert is list else claims["iat"]
    tokens.verify(signed(claims | {"nbf": claims["iat"]}))
    with pytest.raises(TokenInvalid):
        tokens.verify(signed(claims | {claim: convert(time)}))


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        *(("sub", text) for text in ("\u0665", " 7", "+7", "1_0", "07", "0", "-7")),
        ("sub", "7\n"),
        *(("sub", value) for value in (7, 7.0, True, ["7"], "9" * 40)),
        *(("role", value) for value in ("1", 1.0, True, 0, -1)),
        *(("sid", value) for value in ("A" * 32, "a" * 31, "a" * 32 + "\n", 7, "")),
        *(("jti", value) for value in (7, "")),
        ("client_id", "other"),
        ("aud", ["blatam"]),
    ],
)
def test_token_claims_are_not_converted(
    tokens: AccessTokens, clock: Clock, claim: str, value: object
) -> None:
    """R15: a claim has the type and the spelling that the service issues."""
    claims = claims_of(issue(tokens, clock)) | {claim: value}
    with pytest.raises(TokenInvalid):
        tokens.verify(signed(claims))


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_token_from_the_future_is_refused(
    tokens: AccessTokens, clock: Clock, claim: str
) -> None:
    """RFC 7519 4.1.5: not before its time, apart from the leeway."""
    claims = claims_of(issue(tokens, clock))
    limit = claims["iat"] + int(LEEWAY.total_seconds())
    tokens.verify(signed(claims | {claim: limit}))
    with pytest.raises(TokenInvalid):
        tokens.verify(signed(claims | {claim: limit + 1}))


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "JWT"},
        {"kid": "unknown"},
        {"kid": "../../etc/passwd"},
        {"crit": ["exp"]},
    ],
)
def test_token_headers_are_exact(
    tokens: AccessTokens, clock: Clock, header: dict[str, Any]
) -> None:
    """R14, R15: another type, an unknown key, `crit`: refused."""
    claims = claims_of(issue(tokens, clock))
    with pytest.raises(TokenInvalid):
        tokens.verify(signed(claims, **header))


def test_other_algorithms_are_refused(tokens: AccessTokens, clock: Clock) -> None:
    """R14: `none`, and HMAC with the public key as its secret, are refused."""
    claims = claims_of(issue(tokens, clock))
    public = KEY.private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    headers = {"typ": "at+jwt", "kid": KEY.kid}
    forged = [
        jwt.encode(claims, "", algorithm="none", headers=headers),
        hmac_signed(claims, public, headers | {"alg": "HS256"}),
    ]
    for token in forged:
        with pytest.raises(TokenInvalid):
            tokens.verify(token)


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
def test_keys_in_tokens_are_ignored(
    tokens: AccessTokens, clock: Clock, name: str
) -> None:
    """R14: a key in a token's header is not used."""
    claims = claims_of(issue(tokens, clock))
    header = {"kid": KEY.kid, name: "https://attacker.example"}
    with pytest.raises(TokenInvalid):
        tokens.verify(signed(claims, OTHER, **header))


def test_token_has_one_spelling(tokens: AccessTokens, clock: Clock) -> None:
    """R16: altered, cut, padded, or with other spare bits: refused."""
    token = issue(tokens, clock)
    head, body, signature = token.split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet[alphabet.index(signature[-1]) ^ 1]
    claims = json.dumps(claims_of(token) | {"role": 3}).encode()
    altered = urlsafe_b64encode(claims).decode().rstrip("=")
    for other in (
        f"{head}.{body}.{signature[:-1]}{last}",
        f"{head}.{altered}.{signature}",
        f"{head}.{body}.{signature}==",
        f"{head}.{body}",
        f"{head}.{body}.",
        f" {token}",
        f"{token}\n",
        token[:-1],
        "x" * 1_000_000,
        "\ud800.\ud800.\ud800",
        "",
    ):
        with pytest.raises(TokenInvalid):
            tokens.verify(other)


def test_token_cache_is_bounded(tokens: AccessTokens, clock: Clock) -> None:
    """At most `max_cached` verified tokens are kept."""
    small = replace(tokens, max_cached=2, _verified={})
    issued = [issue(tokens, clock) for _ in range(5)]
    for token in issued:
        small.verify(token)
    assert len(small._verified) == 2
