"""Sessions and their refresh tokens: rotation, retry, reuse.

A refresh token is `session id | 256 random bits | tag`, base64url. The tag is a MAC
over the rest, under a key of the service: every token ever issued is recognised
without being stored, and a forged one cannot end a session. The session row holds
the hash of the current token, the hash of its direct parent, and a nonce. The
current token is HMAC-SHA256(parent | nonce), so that a retry with the parent gets
the same successor although it is not stored (RFC 9700 4.14.2).
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from secrets import token_bytes
from uuid import UUID, uuid4

from server.domain.credentials import base64url
from server.domain.credentials.secret_key import Mac
from server.domain.errors import RefreshTokenInvalid
from server.domain.factors.methods import AuthMethod

_ID_BYTES, _SECRET_BYTES, _TAG_BYTES = 16, 32, 16


@dataclass(frozen=True, slots=True)
class Session:
    """A log-in. `nonce` and `parent_hash` are empty until the first refresh.

    `amr` are the methods by which the user was authenticated, and `authenticated_at` is
    the time of the latest reauthentication; without one, it is None. `actor_id` is the
    admin who acts as the user, or 0.
    """

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
    authenticated_at: datetime | None = None
    amr: Sequence[str] = (AuthMethod.PASSWORD,)
    actor_id: int = 0

    @property
    def auth_time(self) -> datetime:
        """The time of the latest log-in or reauthentication; no refresh renews it."""
        return self.authenticated_at or self.created_at

    @property
    def name(self) -> str:
        """The id as callers and tokens write it: 32 hexadecimal digits."""
        return self.id.hex


@dataclass(frozen=True, slots=True)
class RefreshLimits:
    """The lifetimes of refresh tokens, and for how long a parent may be used again."""

    idle: timedelta
    absolute: timedelta
    grace: timedelta


@dataclass(frozen=True, slots=True)
class Rotation:
    """The result of a refresh: the session to write, and the token to return.

    An empty token means that the session ended, for the reason in `cause`.
    """

    session: Session
    token: str = ""
    cause: str = ""


def token_digest(token: str) -> bytes:
    """Return the hash under which a token is stored."""
    return sha256(token.encode()).digest()


@dataclass(frozen=True, slots=True)
class RefreshTokens:
    """Creates and rotates refresh tokens, without I/O."""

    mac: Mac
    limits: RefreshLimits

    def open(
        self,
        user_id: int,
        address: str,
        device: str,
        now: datetime,
        amr: Sequence[str] = (AuthMethod.PASSWORD,),
    ) -> tuple[Session, str]:
        """Return a new session, authenticated by these methods, and its first token."""
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
            amr=amr,
        )
        return session, token

    def read_session_id(self, token: str) -> UUID:
        """Return the session id in a token. Raises RefreshTokenInvalid."""
        try:
            raw = base64url.decode(token)
        except ValueError:
            raw = b""
        body, tag = raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]
        if len(body) != _ID_BYTES + _SECRET_BYTES or not self.mac.verify(body, tag):
            raise RefreshTokenInvalid("not issued by this service")
        return UUID(bytes=body[:_ID_BYTES])

    def rotate(self, session: Session, token: str, now: datetime) -> Rotation:
        """Return the result of a refresh with this token of the session.

        The current token gets a new successor; its parent, within the grace period,
        gets the same successor again; any older token ends the session. Raises
        RefreshTokenInvalid if the session has ended.
        """
        if session.ended_at or now >= session.expires_at:
            raise RefreshTokenInvalid("the session has ended")
        digest = token_digest(token)
        if hmac.compare_digest(digest, session.token_hash):
            return self._advance(session, token, now)
        in_grace = now - session.last_used_at <= self.limits.grace
        parent = hmac.compare_digest(digest, session.parent_hash)
        if parent and in_grace and (successor := self._same_successor(session, token)):
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

    def _same_successor(self, session: Session, parent: str) -> str:
        """Return the successor made before, also under the previous SECRET_KEY."""
        for secret in self.mac.sign_all(parent.encode() + session.nonce):
            for tag in self.mac.sign_all(session.id.bytes + secret):
                token = base64url.encode(session.id.bytes + secret + tag[:_TAG_BYTES])
                if hmac.compare_digest(token_digest(token), session.token_hash):
                    return token
        return ""

    def _token(self, session_id: UUID, secret: bytes) -> str:
        body = session_id.bytes + secret
        return base64url.encode(body + self.mac.sign(body)[:_TAG_BYTES])
