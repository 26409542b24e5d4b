"""Route outbox entries: e-mails to the mailer, events to their handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from server.domain.accounts.users import User
from server.domain.outbox.emails import Email, EmailComposer, NotificationRange
from server.domain.outbox.entries import Entry, Queue
from server.workers.batcher import Batcher

log = structlog.get_logger()
# E-mails of accounts use connections to Postgres of their own, those of notifications
# share one (BatchedUsers, BatchedNotifications).
MAX_COMPOSING = 2


class Mailer(Protocol):
    """Sends emails."""

    async def send(self, email: Email) -> None:
        """Send an e-mail.

        Raises MailerUnavailable if none can be sent at present, MailerBusy if this one
        has to wait for others.
        """

    async def close(self) -> None:
        """Close open connections."""


class EventHandler(Protocol):
    """Handles events after they have committed."""

    async def handle(self, entry: Entry) -> None:
        """Handle an event; idempotent. Raises StoreUnavailable.

        Any other exception is a failed attempt, and the event is handled again.
        """


class UsersByIds(Protocol):
    """Reads accounts, without a cache."""

    async def by_ids(self, user_ids: Sequence[int]) -> Mapping[int, User]:
        """Return the accounts with these ids, by id; unknown ids are left out."""


class LinesOfRanges(Protocol):
    """Reads members' notifications."""

    async def lines_of(
        self, ranges: Sequence[NotificationRange]
    ) -> Mapping[NotificationRange, Sequence[str]]:
        """Return the lines of the current notifications in each range."""


class BatchedUsers:
    """Reads the accounts of concurrent deliveries together."""

    def __init__(self, users: UsersByIds) -> None:
        self._batcher = Batcher(users.by_ids)

    async def by_id(self, user_id: int) -> User | None:
        """Return the account with this id."""
        return await self._batcher.get(user_id)


class BatchedNotifications:
    """Reads the notifications of concurrent deliveries together."""

    def __init__(self, notifications: LinesOfRanges) -> None:
        self._batcher = Batcher(notifications.lines_of)

    async def lines(self, notifications: NotificationRange) -> Sequence[str]:
        """Return the lines of the current notifications in a range."""
        return await self._batcher.get(notifications) or ()


@dataclass(frozen=True, slots=True)
class OutboxRouter:
    """Routes entries, any number of them at a time."""

    emails: EmailComposer
    mailer: Mailer
    event_handlers: Sequence[EventHandler]
    _composing: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(MAX_COMPOSING)
    )

    async def route(self, entry: Entry) -> bool:
        """Deliver an entry; return whether there was anything to deliver.

        Raises StoreUnavailable and the mailer's errors.
        """
        if not entry.is_mail:
            _log_event(entry)
            for handler in self.event_handlers:
                await handler.handle(entry)
            return True
        is_batched = entry.queue is Queue.NOTIFICATION_MAILS
        async with nullcontext() if is_batched else self._composing:
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
