"""What goes on after changes, composed: the courier, its letters and its post."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.config import Settings
from server.domain.clock import Clock
from server.domain.outbox.dispatcher import OutboxDispatcher
from server.domain.outbox.emails import EmailComposer
from server.domain.outbox.router import EventHandlers, Mailer, OutboxRouter
from server.mail.files import FileMailer
from server.mail.message import MessageBuilder
from server.mail.smtp import MailServer, SmtpMailer
from server.store.outbox import PostgresOutbox
from server.workers.supervisor import supervise


@asynccontextmanager
async def delivering(
    settings: Settings,
    outbox: PostgresOutbox,
    emails: EmailComposer,
    event_handlers: EventHandlers,
    clock: Clock,
) -> AsyncIterator[None]:
    """Deliver what the outbox holds; at the end what is on its way still arrives."""
    mailer = _mailer(settings, clock)
    router = OutboxRouter(emails, mailer, event_handlers)
    dispatcher = OutboxDispatcher(outbox, router.route, clock, random.random)
    async with supervise(dispatcher.run, outbox.listen):
        try:
            yield
        finally:
            await dispatcher.drain()
            await mailer.close()


def _mailer(settings: Settings, clock: Clock) -> Mailer:
    message_builder = MessageBuilder(settings.mail_from, _public_url(settings), clock)
    if settings.smtp_url is None:
        return FileMailer(settings.state_dir / "mail", message_builder)
    server = MailServer.parse(settings.smtp_url.get_secret_value())
    return SmtpMailer(server, message_builder)


def _public_url(settings: Settings) -> str:
    """Give where links lead: what an operator set, never what a caller said (R26)."""
    return settings.public_url or f"http://{settings.http_listen}"
