"""Access tokens: JWTs of type at+jwt (RFC 9068), ES256, and the keys that sign.

Verified strictly (RFC 8725): one algorithm, our own key ids only, issuer,
audience and every claim required, no `crit`, and only the one canonical spelling
of each token, because base64url lets trailing bits vary.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from hashlib import sha256
from secrets import token_hex
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.domain.clock import Clock
from server.domain.errors import KeyUnknown, TokenInvalid

ALGORITHM = "ES256"
TYPE = "at+jwt"
CLIENT = "blatam"
LIFETIME = timedelta(minutes=15)
LEEWAY = timedelta(seconds=60)
LONGEST = 4096
_KID = re.compile(r"[0-9a-f]{16}")
REQUIRED = (
    "iss", "aud", "sub", "client_id", "sid", "role", "auth_time", "iat", "exp", "jti",
)  # fmt: skip


class KeyState(IntEnum):
    """A key is published before it signs, and after it has stopped."""

    NEXT = 1
    ACTIVE = 2
    RETIRED = 3


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A P-256 key pair with its name."""

    kid: str
    state: KeyState
    private: ec.EllipticCurvePrivateKey

    @staticmethod
    def generate(state: KeyState) -> SigningKey:
        """Make a new key."""
        return SigningKey(token_hex(8), state, ec.generate_private_key(ec.SECP256R1()))

    @staticmethod
    def load(kid: str, state: KeyState, pem: bytes) -> SigningKey:
        """Read a key from what `pem` gave."""
        private = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise TypeError(f"signing key {kid} is no elliptic-curve key")
        return SigningKey(kid, state, private)

    @property
    def pem(self) -> bytes:
        """The private key, unencrypted, as PKCS #8."""
        return self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def coordinates(self) -> tuple[str, str]:
        """Give the public point as RFC 7518 6.2.1 writes it: x, y."""
        point = self.private.public_key().public_numbers()
        return _base64url(point.x), _base64url(point.y)


def _base64url(number: int) -> str:
    return urlsafe_b64encode(number.to_bytes(32)).decode().rstrip("=")


@dataclass(slots=True)
class KeyRing:
    """The keys in force; replaced whole when the store has others."""

    keys: Mapping[str, SigningKey] = field(default_factory=dict)
    look_again: Callable[[], Awaitable[None]] | None = None

    def replace(self, keys: Iterable[SigningKey]) -> None:
        """Use these keys from now on."""
        self.keys = {key.kid: key for key in keys}

    async def learn(self) -> None:
        """Look for keys made elsewhere, as often as that may be done."""
        if self.look_again:
            await self.look_again()

    @property
    def active(self) -> SigningKey:
        """The key that signs."""
        return next(k for k in self.keys.values() if k.state is KeyState.ACTIVE)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified access token says."""

    user_id: int
    session_id: str
    role: int
    expires_at: datetime


@dataclass(slots=True)
class AccessTokens:
    """Issues and verifies access tokens.

    Verified ones are kept by their hash until they expire, `most` at a time:
    a signature costs 75 us, a look-up 1 us. Revocation is not looked at here.
    """

    issuer: str
    audience: str
    ring: KeyRing
    clock: Clock
    most: int = 50_000
    _verified: dict[bytes, Claims] = field(default_factory=dict)

    def issue(
        self, user_id: int, session_id: str, role: int, auth_time: datetime
    ) -> str:
        """Give a new token for a session."""
        now = int(self.clock().timestamp())
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": str(user_id),
            "client_id": CLIENT,
            "sid": session_id,
            "role": role,
            "auth_time": int(auth_time.timestamp()),
            "iat": now,
            "exp": now + int(LIFETIME.total_seconds()),
            "jti": token_hex(16),
        }
        key = self.ring.active
        headers = {"typ": TYPE, "kid": key.kid}
        return jwt.encode(claims, key.private, algorithm=ALGORITHM, headers=headers)

    def verify(self, token: str) -> Claims:
        """Give what the token says.

        Raises TokenInvalid; KeyUnknown if another process may know its key.
        """
        digest = sha256(token.encode(errors="replace")).digest()
        claims = self._verified.get(digest)
        if claims is None:
            claims = self._verify_signature(token)
            if len(self._verified) >= self.most:
                del self._verified[next(iter(self._verified))]
            self._verified[digest] = claims
        if self.clock() > claims.expires_at + LEEWAY:
            self._verified.pop(digest, None)
            raise TokenInvalid("expired")
        return claims

    def _verify_signature(self, token: str) -> Claims:
        if len(token) > LONGEST or not _canonical(token):
            raise TokenInvalid("no canonical JWT")
        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid", "")
            if header.get("typ") != TYPE or "crit" in header:
                raise TokenInvalid("other type or crit")
            if header.get("alg") != ALGORITHM or not _KID.fullmatch(kid):
                raise TokenInvalid("no key of ours")
            key = self.ring.keys.get(kid)
            if key is None:
                raise KeyUnknown
            found = self._decode(token, key)
            return _claims(found)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
            raise TokenInvalid(type(error).__name__) from error

    def _decode(self, token: str, key: SigningKey) -> dict[str, Any]:
        return jwt.decode(
            token,
            key.private.public_key(),
            algorithms=[ALGORITHM],
            audience=self.audience,
            issuer=self.issuer,
            leeway=LEEWAY,
            # `exp` is held against our own clock, by verify
            options={"require": list(REQUIRED), "verify_exp": False},
        )


def _claims(found: Mapping[str, Any]) -> Claims:
    return Claims(
        user_id=int(found["sub"]),
        session_id=str(found["sid"]),
        role=int(found["role"]),
        expires_at=datetime.fromtimestamp(int(found["exp"]), UTC),
    )


def _canonical(token: str) -> bool:
    parts = token.split(".")
    try:
        return len(parts) == 3 and all(
            urlsafe_b64encode(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
            .decode()
            .rstrip("=")
            == part
            for part in parts
        )
    except ValueError:
        return False
