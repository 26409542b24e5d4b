"""Access tokens: JWTs of type at+jwt (RFC 9068), ES256, and the keys that sign.

Verified strictly (RFC 8725): one algorithm, only key ids of this service, exact
issuer and audience, every claim in the type and spelling that `issue` writes, no
`crit`, and one canonical spelling per token, because base64url lets trailing bits
vary.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from hashlib import sha256
from secrets import token_hex
from typing import Annotated, Any, Literal

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field

from server.domain.accounts.users import Role
from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.credentials import base64url
from server.domain.errors import KeyUnknown, TokenInvalid
from server.domain.factors.methods import ACR, AuthMethod, level_of

ALGORITHM = "ES256"
TYPE = "at+jwt"
CLIENT = "blatam"
LIFETIME = timedelta(minutes=15)
LEEWAY = timedelta(seconds=60)
MAX_TOKEN_LENGTH = 4096
_KID = re.compile(r"[0-9a-f]{16}")
_LEVELS = {acr: level for level, acr in ACR.items()}
_YEAR_9999 = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())
_NumericDate = Annotated[int, Field(ge=0, le=_YEAR_9999)]  # RFC 7519 2, in seconds


class _Actor(BaseModel):
    """The claim `act` (RFC 8693 4.1): the admin who acts as the subject."""

    model_config = ConfigDict(strict=True)

    sub: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,18}$")]


class _Payload(BaseModel):
    """The claims of an access token; nothing is converted.

    Tokens of earlier releases have no `acr` and no `amr`: their log-ins had one factor.
    """

    model_config = ConfigDict(strict=True)

    sub: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,18}$")]
    client_id: Literal["blatam"]
    sid: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    role: Annotated[int, Field(ge=1)]
    auth_time: _NumericDate
    iat: _NumericDate
    nbf: _NumericDate = 0
    exp: _NumericDate
    jti: Annotated[str, Field(min_length=1)]
    acr: Literal["aal1", "aal2"] = "aal1"
    amr: tuple[str, ...] = Field((), strict=False)
    act: _Actor | None = None


class KeyState(IntEnum):
    """The stages of a key: it is published before it signs and after it stopped."""

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
        """Return a new key."""
        return SigningKey(token_hex(8), state, ec.generate_private_key(ec.SECP256R1()))

    @staticmethod
    def load(kid: str, state: KeyState, pem: bytes) -> SigningKey:
        """Return the key of a PEM text, as `pem` writes it."""
        private = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise TypeError(f"signing key {kid} is not an elliptic-curve key")
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
        """Return the public point as RFC 7518 6.2.1 writes it: x, y."""
        point = self.private.public_key().public_numbers()
        return _coordinate(point.x), _coordinate(point.y)


def _coordinate(number: int) -> str:
    return base64url.encode(number.to_bytes(32))


@dataclass(slots=True)
class KeyRing:
    """The keys in use; replaced as a whole when the stored keys change."""

    keys: Mapping[str, SigningKey] = field(default_factory=dict)
    read_again: Callable[[], Awaitable[None]] | None = None

    def replace(self, keys: Iterable[SigningKey]) -> None:
        """Use these keys from now on."""
        self.keys = {key.kid: key for key in keys}

    async def reload(self) -> None:
        """Read keys made by another process, if a read is allowed now."""
        if self.read_again:
            await self.read_again()

    @property
    def active(self) -> SigningKey:
        """The key that signs."""
        return next(k for k in self.keys.values() if k.state is KeyState.ACTIVE)


@dataclass(frozen=True, slots=True)
class Claims:
    """The content of a verified access token, and the caller that it stands for."""

    user_id: int
    session_id: str
    role: int
    expires_at: datetime
    caller: Caller
    amr: Sequence[str] = ()


@dataclass(slots=True)
class AccessTokens:
    """Issues and verifies access tokens.

    Verified tokens are cached by their hash until they expire, at most `max_cached`:
    a signature costs 75 us, a look-up 1 us. Revocation is checked by the caller.
    """

    issuer: str
    audience: str
    ring: KeyRing
    clock: Clock
    max_cached: int = 50_000
    _verified: dict[bytes, Claims] = field(default_factory=dict)

    def issue(
        self,
        user_id: int,
        session_id: str,
        role: int,
        auth_time: datetime,
        amr: Sequence[str] = (AuthMethod.PASSWORD,),
        *,
        actor_id: int = 0,
    ) -> str:
        """Return a new token for a session.

        `auth_time` is that of the latest log-in or reauthentication, `amr` its methods,
        and `actor_id` the admin who acts as the user, or 0.
        """
        now = int(self.clock().timestamp())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": str(user_id),
            "client_id": CLIENT,
            "sid": session_id,
            "role": role,
            "auth_time": int(auth_time.timestamp()),
            "acr": ACR[level_of(amr)],
            "amr": list(amr),
            "iat": now,
            "exp": now + int(LIFETIME.total_seconds()),
            "jti": token_hex(16),
        }
        if actor_id:
            claims["act"] = {"sub": str(actor_id)}
        key = self.ring.active
        headers = {"typ": TYPE, "kid": key.kid}
        return jwt.encode(claims, key.private, algorithm=ALGORITHM, headers=headers)

    def verify(self, token: str) -> Claims:
        """Return the claims of a token.

        Raises TokenInvalid; KeyUnknown if another process may know its key.
        """
        digest = sha256(token.encode(errors="replace")).digest()
        claims = self._verified.get(digest)
        if claims is None:
            claims = self._verify_signature(token)
            if len(self._verified) >= self.max_cached:
                del self._verified[next(iter(self._verified))]
            self._verified[digest] = claims
        if self.clock() > claims.expires_at + LEEWAY:
            self._verified.pop(digest, None)
            raise TokenInvalid("expired")
        return claims

    def _verify_signature(self, token: str) -> Claims:
        if len(token) > MAX_TOKEN_LENGTH or not _canonical(token):
            raise TokenInvalid("not a canonical JWT")
        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid", "")
            if header.get("typ") != TYPE or "crit" in header:
                raise TokenInvalid(
                    "the token header has a `typ` other than at+jwt, or contains `crit`"
                )
            if header.get("alg") != ALGORITHM or not _KID.fullmatch(kid):
                raise TokenInvalid(
                    "the token header has an `alg` other than ES256, "
                    "or a malformed `kid`"
                )
            key = self.ring.keys.get(kid)
            if key is None:
                raise KeyUnknown
            payload = _Payload.model_validate(self._decode(token, key))
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise TokenInvalid(type(error).__name__) from error
        if max(payload.iat, payload.nbf) > (self.clock() + LEEWAY).timestamp():
            raise TokenInvalid("not valid yet")
        return _claims(payload)

    def _decode(self, token: str, key: SigningKey) -> dict[str, Any]:
        return jwt.decode(
            token,
            key.private.public_key(),
            algorithms=[ALGORITHM],
            audience=self.audience,
            issuer=self.issuer,
            options={
                "strict_aud": True,
                # PyJWT converts times, and reads the system's clock
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )


def _claims(payload: _Payload) -> Claims:
    user_id = int(payload.sub)
    return Claims(
        user_id=user_id,
        session_id=payload.sid,
        role=payload.role,
        expires_at=datetime.fromtimestamp(payload.exp, UTC),
        caller=Caller(
            user_id,
            payload.sid,
            payload.role == Role.ADMIN,
            role=payload.role,
            auth_time=payload.auth_time,
            factor_level=_LEVELS[payload.acr],
            actor_id=int(payload.act.sub) if payload.act else 0,
        ),
        amr=payload.amr,
    )


def _canonical(token: str) -> bool:
    parts = token.split(".")
    try:
        for part in parts:
            base64url.decode(part)
    except ValueError:
        return False
    return len(parts) == 3
