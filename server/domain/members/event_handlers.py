"""Handlers of events of members and posts, called after the change has committed.

An event may be delivered more than once: handling it again changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from server.domain.outbox.entries import Entry, EventType

_CHANGES_OWN_COUNTS = frozenset(
    {
        EventType.SESSION_OPENED,
        EventType.FOLLOWED,
        EventType.UNFOLLOWED,
        EventType.POST_PUBLISHED,
        EventType.POST_WITHDRAWN,
    }
)
_CHANGES_COUNTS_OF_FOLLOWED = frozenset(
    {EventType.USER_DELETED, EventType.USER_UNDELETED}
)


class Counts(Protocol):
    """Stores the statistics of members."""

    async def mark(self, user_id: int) -> None:
        """Mark the counts of a member as stale."""

    async def mark_followed_by(self, user_id: int) -> None:
        """Mark the counts of everyone whom a member follows as stale."""


class NotificationWriter(Protocol):
    """Stores notifications that members' settings require."""

    async def fan_out(self, entry: Entry) -> None:
        """Notify some followers of a post, and write an entry for the next ones."""

    async def follower(self, entry: Entry) -> None:
        """Notify a member of a follower, if their settings require it."""


@dataclass(frozen=True, slots=True)
class MemberEventHandlers:
    """Updates statistics and notifications."""

    counts: Counts
    notifications: NotificationWriter

    async def handle(self, entry: Entry) -> None:
        """Handle an event. Raises StoreUnavailable."""
        if entry.user_id is None:
            return
        if entry.kind in _CHANGES_OWN_COUNTS:
            await self.counts.mark(entry.user_id)
        if entry.kind in _CHANGES_COUNTS_OF_FOLLOWED:
            await self.counts.mark_followed_by(entry.user_id)
        if entry.kind in (EventType.POST_PUBLISHED, EventType.POST_FAN_OUT):
            await self.notifications.fan_out(entry)
        if entry.kind == EventType.FOLLOWED:
            await self.notifications.follower(entry)
