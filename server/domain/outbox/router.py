"""Where each entry goes: letters to the post, events to the analytics and on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import structlog

from server.domain.outbox.emails import Email, EmailComposer
from server.domain.outbox.entries import Entry

log = structlog.get_logger()


class Mailer(Protocol):
    """Sends letters."""

    async def send(self, email: Email) -> None:
        """Send a letter. Raises MailerUnavailable if none can be sent at present."""

    async def close(self) -> None:
        """Let go of what is open."""


class EventHandlers(Protocol):
    """Does what follows from events."""

    async def handle(self, entry: Entry) -> None:
        """Do it; doing it again changes nothing. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class OutboxRouter:
    """Carries entries, one at a time."""

    emails: EmailComposer
    mailer: Mailer
    event_handlers: EventHandlers

    async def route(self, entry: Entry) -> bool:
        """Carry an entry; give whether there was anything to deliver.

        Raises MailerUnavailable, StoreUnavailable, and what the post refuses with.
        """
        if not entry.is_mail:
            self._count(entry)
            await self.event_handlers.handle(entry)
            return True
        email = await self.emails.email(entry)
        if email is None:
            return False
        await self.mailer.send(email)
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
