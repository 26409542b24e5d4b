"""Sessions and their refresh tokens: rotation, retry, reuse.

A refresh token is `session id | 256 random bits | tag`, base64url. The tag is a
MAC of ours over the rest: every token we ever gave is recognised, without being
kept, and nobody can end a session with a made-up one. The session row holds the
hash of the present token, of its direct parent, and the nonce that, with the
parent, makes the present one again: HMAC-SHA256(parent | nonce). So a retry with
the parent gets the same successor without our keeping it (RFC 9700 4.14.2).
"""

from __future__ import annotations

import binascii
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from secrets import token_bytes
from uuid import UUID, uuid4

from server.domain.credentials.secret_key import Mac
from server.domain.errors import RefreshTokenInvalid

_ID_BYTES, _SECRET_BYTES, _TAG_BYTES = 16, 32, 16


@dataclass(frozen=True, slots=True)
class Session:
    """A log-in. `nonce` and `parent_hash` are empty until the first refresh."""

    id: UUID
    user_id: int
    token_hash: bytes
    parent_hash: bytes
    nonce: bytes
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    address: str
    device: str
    ended_at: datetime | None = None

    @property
    def name(self) -> str:
        """The id as callers and tokens write it."""
        return self.id.hex


@dataclass(frozen=True, slots=True)
class RefreshLimits:
    """How long refresh tokens live, and how long a parent may be used again."""

    idle: timedelta
    absolute: timedelta
    grace: timedelta


@dataclass(frozen=True, slots=True)
class Rotation:
    """What became of a refresh: the session to write, and the token to give.

    No token means that the session was ended because `cause`.
    """

    session: Session
    token: str = ""
    cause: str = ""


def token_digest(token: str) -> bytes:
    """Give what a token is kept as."""
    return sha256(token.encode()).digest()


@dataclass(frozen=True, slots=True)
class RefreshTokens:
    """The arithmetic of refresh tokens; touches no store."""

    mac: Mac
    limits: RefreshLimits

    def open(
        self, user_id: int, address: str, device: str, now: datetime
    ) -> tuple[Session, str]:
        """Give a new session and its first token."""
        session_id = uuid4()
        token = self._token(session_id, token_bytes(_SECRET_BYTES))
        session = Session(
            id=session_id,
            user_id=user_id,
            token_hash=token_digest(token),
            parent_hash=b"",
            nonce=b"",
            created_at=now,
            last_used_at=now,
            expires_at=now + min(self.limits.idle, self.limits.absolute),
            address=address,
            device=device,
        )
        return session, token

    def session_id(self, token: str) -> UUID:
        """Give the session of a token of ours. Raises RefreshTokenInvalid."""
        try:
            raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        body, tag = raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]
        ours = len(body) == _ID_BYTES + _SECRET_BYTES and self.mac.verify(body, tag)
        if not ours or _encode(raw) != token:
            raise RefreshTokenInvalid("not one of ours")
        return UUID(bytes=body[:_ID_BYTES])

    def rotate(self, session: Session, token: str, now: datetime) -> Rotation:
        """Decide what a token of this session gets. Raises RefreshTokenInvalid.

        The present token gets a new successor, its parent within the grace window
        the same one again; any older token ends the session.
        """
        if session.ended_at or now >= session.expires_at:
            raise RefreshTokenInvalid("the session has ended")
        digest = token_digest(token)
        if hmac.compare_digest(digest, session.token_hash):
            return self._advance(session, token, now)
        in_grace = now - session.last_used_at <= self.limits.grace
        parent = hmac.compare_digest(digest, session.parent_hash)
        if parent and in_grace and (successor := self._again(session, token)):
            return Rotation(session, successor)
        return Rotation(replace(session, ended_at=now), cause="refresh token reused")

    def _advance(self, session: Session, token: str, now: datetime) -> Rotation:
        nonce = token_bytes(32)
        secret = self.mac.sign(token.encode() + nonce)
        successor = self._token(session.id, secret)
        absolute = session.created_at + self.limits.absolute
        advanced = replace(
            session,
            token_hash=token_digest(successor),
            parent_hash=session.token_hash,
            nonce=nonce,
            last_used_at=now,
            expires_at=min(now + self.limits.idle, absolute),
        )
        return Rotation(advanced, successor)

    def _again(self, session: Session, parent: str) -> str:
        """Give the successor made before; the secret may have changed since."""
        for secret in self.mac.sign_all(parent.encode() + session.nonce):
            for tag in self.mac.sign_all(session.id.bytes + secret):
                token = _encode(session.id.bytes + secret + tag[:_TAG_BYTES])
                if hmac.compare_digest(token_digest(token), session.token_hash):
                    return token
        return ""

    def _token(self, session_id: UUID, secret: bytes) -> str:
        body = session_id.bytes + secret
        return _encode(body + self.mac.sign(body)[:_TAG_BYTES])


def _encode(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")
