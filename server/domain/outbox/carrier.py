"""Where each entry goes: letters to the post, events to the analytics and on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import structlog

from server.domain.outbox.entries import Entry
from server.domain.outbox.letters import Letter, Letters

log = structlog.get_logger()


class Post(Protocol):
    """Sends letters."""

    async def send(self, letter: Letter) -> None:
        """Send a letter. Raises PostAway if none can be sent at present."""

    async def close(self) -> None:
        """Let go of what is open."""


class Consequences(Protocol):
    """Does what follows from events."""

    async def of(self, entry: Entry) -> None:
        """Do it; doing it again changes nothing. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """Carries entries, one at a time."""

    letters: Letters
    post: Post
    consequences: Consequences

    async def carry(self, entry: Entry) -> bool:
        """Carry an entry; give whether there was anything to deliver.

        Raises PostAway, StoreUnavailable, and what the post refuses with.
        """
        if not entry.is_mail:
            self._count(entry)
            await self.consequences.of(entry)
            return True
        letter = await self.letters.letter(entry)
        if letter is None:
            return False
        await self.post.send(letter)
        return True

    def _count(self, entry: Entry) -> None:
        """Tell the analytics, which read the log; `entry` tells a repeat from news."""
        log.info(
            "analytics",
            entry=entry.id,
            kind=entry.kind,
            user_id=entry.user_id,
            at=entry.created_at.isoformat(),
        )
