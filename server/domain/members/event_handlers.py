"""What follows from posts and follows, after they have committed.

Entries come at least once: whatever is done here for a second time changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from server.domain.outbox.entries import Entry, EventType

_COUNTED = frozenset(
    {
        EventType.SEEN,
        EventType.FOLLOWED,
        EventType.UNFOLLOWED,
        EventType.POST_PUBLISHED,
        EventType.POST_WITHDRAWN,
    }
)
_COME_OR_GONE = frozenset({EventType.USER_DELETED, EventType.USER_UNDELETED})


class Counts(Protocol):
    """Keeps what is counted of members."""

    async def mark(self, user_id: int) -> None:
        """Have a member counted anew soon."""

    async def mark_followed_by(self, user_id: int) -> None:
        """Have everybody counted anew whom a member follows."""


class Notifications(Protocol):
    """Keeps what members want to be told."""

    async def fan_out(self, entry: Entry) -> None:
        """Note a post for some followers whose settings ask for it, then go on."""

    async def follower(self, entry: Entry) -> None:
        """Note a follower for the member, if their settings ask for it."""


@dataclass(frozen=True, slots=True)
class EventHandlers:
    """Does what follows from events."""

    counts: Counts
    notifications: Notifications

    async def handle(self, entry: Entry) -> None:
        """Do what follows from an event. Raises StoreUnavailable."""
        if entry.user_id is None:
            return
        if entry.kind in _COUNTED:
            await self.counts.mark(entry.user_id)
        if entry.kind in _COME_OR_GONE:
            await self.counts.mark_followed_by(entry.user_id)
        if entry.kind in (EventType.POST_PUBLISHED, EventType.POST_FAN_OUT):
            await self.notifications.fan_out(entry)
        if entry.kind == EventType.FOLLOWED:
            await self.notifications.follower(entry)
