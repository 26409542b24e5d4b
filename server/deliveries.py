"""What goes on after changes, composed: the courier, its letters and its post."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.background import following
from server.config import Settings
from server.domain.clock import Clock
from server.domain.outbox.carrier import Carrier, Consequences, Post
from server.domain.outbox.courier import Courier
from server.domain.outbox.letters import Letters
from server.mail.folder import FolderPost
from server.mail.message import Stationery
from server.mail.smtp import MailServer, SmtpPost
from server.store.outbox import PostgresOutbox


@asynccontextmanager
async def delivering(
    settings: Settings,
    outbox: PostgresOutbox,
    letters: Letters,
    consequences: Consequences,
    clock: Clock,
) -> AsyncIterator[None]:
    """Deliver what the outbox holds; at the end what is on its way still arrives."""
    post = _post(settings, clock)
    carrier = Carrier(letters, post, consequences)
    courier = Courier(outbox, carrier.carry, clock, random.random)
    async with following(courier.run, outbox.listen):
        try:
            yield
        finally:
            await courier.rest()
            await post.close()


def _post(settings: Settings, clock: Clock) -> Post:
    stationery = Stationery(settings.mail_from, _public_url(settings), clock)
    if settings.smtp_url is None:
        return FolderPost(settings.state_dir / "mail", stationery)
    server = MailServer.parse(settings.smtp_url.get_secret_value())
    return SmtpPost(server, stationery)


def _public_url(settings: Settings) -> str:
    """Give where links lead: what an operator set, never what a caller said (R26)."""
    return settings.public_url or f"http://{settings.http_listen}"
