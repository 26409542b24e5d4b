"""Route outbox entries: e-mails to the mailer, events to their handlers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from server.domain.outbox.emails import Email, EmailComposer
from server.domain.outbox.entries import Entry

log = structlog.get_logger()


class Mailer(Protocol):
    """Sends emails."""

    async def send(self, email: Email) -> None:
        """Send an e-mail. Raises MailerUnavailable if none can be sent at present."""

    async def close(self) -> None:
        """Close open connections."""


class EventHandler(Protocol):
    """Handles events after they have committed."""

    async def handle(self, entry: Entry) -> None:
        """Handle an event; idempotent. Raises StoreUnavailable.

        Any other exception is a failed attempt, and the event is handled again.
        """


@dataclass(frozen=True, slots=True)
class OutboxRouter:
    """Routes one entry at a time."""

    emails: EmailComposer
    mailer: Mailer
    event_handlers: Sequence[EventHandler]

    async def route(self, entry: Entry) -> bool:
        """Deliver an entry; return whether there was anything to deliver.

        Raises MailerUnavailable, StoreUnavailable, and the mailer's other errors.
        """
        if not entry.is_mail:
            _log_event(entry)
            for handler in self.event_handlers:
                await handler.handle(entry)
            return True
        email = await self.emails.email(entry)
        if email is None:
            return False
        await self.mailer.send(email)
        return True


def _log_event(entry: Entry) -> None:
    """Log an event for analytics; `entry` identifies a repeated delivery."""
    log.info(
        "analytics",
        entry=entry.id,
        kind=entry.kind,
        user_id=entry.user_id,
        at=entry.created_at.isoformat(),
    )
