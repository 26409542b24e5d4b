"""ID tokens: what is refused (OpenID Connect Core 3.1.3.7, RFC 8725)."""

import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.warnings import InsecureKeyLengthWarning

from server.domain.credentials import base64url
from server.domain.errors import FederatedLoginInvalid
from server.domain.identities.id_tokens import (
    Expected,
    TokenHeader,
    find_key,
    read_header,
    verify,
)
from tests.fakes import NOON
from tests.identity_provider import Key, ec_key, jwk_of

ISSUER, CLIENT, NONCE = "https://idp.test", "academy", "n-0S6"
KEY = ec_key()
RSA = rsa.generate_private_key(65537, 2048)
NOW = int(NOON.timestamp())
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": CLIENT,
    "sub": "ana",
    "nonce": NONCE,
    "iat": NOW,
    "exp": NOW + 300,
}


def check(token: str, *keys: dict[str, Any]) -> object:
    header = read_header(token)
    key = find_key(header, keys or [jwk_of(KEY, "ES256", "k")])
    assert key
    return verify(token, header, key, Expected(ISSUER, CLIENT, NONCE), NOON)


def signed(
    changes: dict[str, Any] | None = None, key: Key = KEY, algorithm: str = "ES256"
) -> str:
    claims = {**CLAIMS, **(changes or {})}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers={"kid": "k"})


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (KEY, "ES256"),
        (RSA, "RS256"),
        (RSA, "PS256"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
    ],
)
def test_accepted_algorithms(key: Key, algorithm: str) -> None:
    token = signed(key=key, algorithm=algorithm)
    assert check(token, jwk_of(key, algorithm, "k")) == CLAIMS


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": NOW - 59},
        {"iat": NOW + 59, "exp": NOW + 300.5},
        {"aud": [CLIENT]},
        {"aud": [CLIENT, "other"], "azp": CLIENT},
        {"aud": CLIENT, "azp": CLIENT},
    ],
)
def test_accepted_claims(changes: dict[str, Any]) -> None:
    """Clocks may differ by a minute."""
    check(signed(changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": NOW - 60},
        {"exp": None},
        {"exp": "soon"},
        {"exp": True},
        {"iat": NOW + 61},
        {"iat": None},
        {"iss": "https://evil.test"},
        {"iss": ISSUER + "/"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"aud": []},
        {"aud": [CLIENT, "other"]},
        {"aud": [CLIENT, 1]},
        {"azp": "other"},
        {"aud": [CLIENT, "other"], "azp": "other"},
        {"nonce": "another"},
        {"nonce": None},
        {"nonce": 7},
        {"sub": None},
        {"sub": ""},
        {"sub": "a" * 256},
        {"sub": "ana\0"},
        {"sub": 7},
    ],
)
def test_refused_claims(changes: dict[str, Any]) -> None:
    with pytest.raises(FederatedLoginInvalid):
        check(signed(changes))


def test_unsigned_token_is_refused() -> None:
    body = signed().split(".")[1]
    for algorithm in ("none", "None", "nOnE", None):
        head = base64url.encode(json.dumps({"alg": algorithm}).encode())
        with pytest.raises(FederatedLoginInvalid):
            read_header(f"{head}.{body}.")


def test_hmac_with_the_public_key_is_refused() -> None:
    """The confusion of algorithms: everybody has the key that would verify it."""
    public = RSA.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    body = signed().split(".")[1]
    head = base64url.encode(b'{"alg":"HS256","kid":"k"}')
    tag = hmac.digest(public, f"{head}.{body}".encode(), "sha256")
    with pytest.raises(FederatedLoginInvalid):
        read_header(f"{head}.{body}.{base64url.encode(tag)}")


def test_key_of_another_kind_is_not_used() -> None:
    """By kid, kty, crv, use and alg; and never a symmetric key."""
    header = TokenHeader("ES256", "k")
    jwk = jwk_of(KEY, "ES256", "k")
    assert find_key(header, [jwk]) == jwk
    other_curve = jwk_of(ec.generate_private_key(ec.SECP384R1()), "ES384", "k")
    for key in (
        {**jwk, "kid": "other"},
        {**jwk, "use": "enc"},
        {**jwk, "alg": "RS256"},
        {"kty": "oct", "k": "AAAA", "kid": "k"},
        {**other_curve, "alg": "ES256"},
        {},
    ):
        assert find_key(header, [key]) is None
    assert find_key(TokenHeader("ES256", ""), [jwk]) == jwk
    assert find_key(TokenHeader("ES256", ""), [jwk, {**jwk, "kid": "2"}]) is None


def test_signature_of_another_key_is_refused() -> None:
    with pytest.raises(FederatedLoginInvalid):
        check(signed(key=ec_key()))


def test_changed_token_is_refused() -> None:
    head, body, signature = signed().split(".")
    other = signed({"sub": "eve"}).split(".")[1]
    for token in (f"{head}.{other}.{signature}", f"{head}.{body}.", "a.b", ""):
        with pytest.raises(FederatedLoginInvalid):
            check(token)


def test_short_rsa_key_is_refused() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    with pytest.warns(InsecureKeyLengthWarning):
        token = signed(key=weak, algorithm="RS256")
    with pytest.raises(FederatedLoginInvalid, match="invalid"):
        check(token, jwk_of(weak, "RS256", "k"))


def test_malformed_key_is_refused() -> None:
    jwk = {**jwk_of(KEY, "ES256", "k"), "x": "AA"}
    with pytest.raises(FederatedLoginInvalid):
        check(signed(), jwk)


def test_critical_header_is_refused() -> None:
    token = jwt.encode(CLAIMS, KEY, "ES256", headers={"crit": ["b64"], "b64": True})
    with pytest.raises(FederatedLoginInvalid):
        read_header(token)
