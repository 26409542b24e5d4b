"""One-click unsubscription from e-mails that members can turn off (RFC 8058).

The link in such an e-mail contains a token: a MAC over the member and the kind of
e-mail. It proves that its bearer received that e-mail, so that no log-in is needed. It
does not expire, because an e-mail may be read at any time, and it can do no more than
turn that kind of e-mail off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.domain.clock import Clock
from server.domain.credentials import base64url
from server.domain.credentials.secret_key import Mac
from server.domain.errors import MailedTokenInvalid
from server.domain.outbox.entries import EventType

# The settings that a kind of e-mail needs. A digest contains all notifications.
SETTINGS_BY_KIND: Mapping[EventType, Collection[str]] = {
    EventType.FOLLOWED_POST: ("followed_posts",),
    EventType.NEW_FOLLOWER: ("new_followers",),
    EventType.DIGEST: ("followed_posts", "new_followers", "digest"),
}
_TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class UnsubscribeTokens:
    """Makes and reads the tokens of unsubscribe links."""

    mac: Mac

    def make(self, user_id: int, kind: EventType) -> str:
        """Return the token that turns a kind of e-mail off."""
        payload = f"{user_id}:{kind}".encode()
        return base64url.encode(self.mac.sign(payload)[:_TAG_BYTES] + payload)

    def read(self, token: str) -> tuple[int, EventType]:
        """Return the user and the kind of e-mail. Raises MailedTokenInvalid."""
        try:
            raw = base64url.decode(token)
        except ValueError:
            raise MailedTokenInvalid from None
        tag, payload = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if not self.mac.verify(payload, tag):
            raise MailedTokenInvalid
        user_id, _, kind = payload.decode().partition(":")
        return int(user_id), EventType(kind)


class SubscriptionStore(Protocol):
    """Writes which e-mails members receive."""

    async def turn_off(
        self, user_id: int, settings: Collection[str], now: datetime
    ) -> None:
        """Turn settings of a member off; those that are off stay as they are."""


@dataclass(frozen=True, slots=True)
class Unsubscriptions:
    """The rules of unsubscribing."""

    store: SubscriptionStore
    tokens: UnsubscribeTokens
    clock: Clock

    async def unsubscribe(self, token: str) -> int:
        """Turn off the e-mails that a token names; return the user's id.

        Repeating it changes nothing. Raises MailedTokenInvalid.
        """
        user_id, kind = self.tokens.read(token)
        await self.store.turn_off(user_id, SETTINGS_BY_KIND[kind], self.clock())
        return user_id
