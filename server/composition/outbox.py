"""Outbox: delivers e-mails and handles events after their changes have committed."""

from __future__ import annotations

import random
from datetime import timedelta

from server.composition.feature import Drain, DrainStage, Feature
from server.composition.log_ins.login_codes import mailed_login_codes
from server.composition.resources import Resources, unsubscribe_tokens
from server.composition.stores import Stores
from server.config import Settings
from server.domain.clock import Clock
from server.domain.credentials.mailed_tokens import MailedTokens
from server.domain.members.event_handlers import MemberEventHandlers
from server.domain.outbox.emails import EmailComposer
from server.mail.files import FileMailer
from server.mail.message import MessageBuilder
from server.mail.smtp import MailServer, SmtpMailer
from server.store.accounts.user_reads import UserReads
from server.store.credentials.accounts import PostgresAccounts
from server.store.members.analytics import PostgresAnalytics
from server.store.members.notifications import PostgresNotifications
from server.workers.outbox_dispatcher import POLL_INTERVAL, OutboxDispatcher
from server.workers.outbox_router import (
    BatchedNotifications,
    BatchedUsers,
    Mailer,
    OutboxRouter,
)
from server.workers.poller import Poller
from server.workers.traced_outbox import Route, trace_deliveries

BACKLOG_INTERVAL = timedelta(seconds=5)
# The addresses that accept connections but to which no browser can connect.
_LOOPBACK_OF_ANY = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104


def outbox_feature(resources: Resources, stores: Stores) -> Feature:
    """Build the feature."""
    database, clock, outbox = resources.database, resources.clock, stores.outbox
    mailer = _mailer(resources.settings, clock)
    notifications = PostgresNotifications(database, clock)
    tokens = MailedTokens(
        stores.mailed_tokens, resources.secret.mac("mailed-tokens"), clock
    )
    router = OutboxRouter(
        EmailComposer(
            users=BatchedUsers(UserReads(database)),
            accounts=PostgresAccounts(database),
            delivery_log=outbox,
            tokens=tokens,
            login_codes=mailed_login_codes(resources, tokens),
            notifications=BatchedNotifications(notifications),
            unsubscribe_tokens=unsubscribe_tokens(resources),
        ),
        mailer,
        (
            stores.users.cache,
            MemberEventHandlers(PostgresAnalytics(database), notifications),
        ),
    )
    route: Route = router.route
    if resources.tracing:
        route = trace_deliveries(route, resources.tracing.tracer)
    wake = stores.signals.entries_due
    dispatcher = OutboxDispatcher(
        outbox, route, clock, random.random, mails=resources.metrics.mails, wake=wake
    )
    resources.metrics.degraded["smtp"] = lambda: dispatcher.mailer_is_degraded
    return Feature(
        tasks=(
            Poller("outbox", dispatcher.deliver, POLL_INTERVAL, wake=wake),
            Poller("outbox backlog", outbox.refresh_backlog, BACKLOG_INTERVAL),
        ),
        drains=(
            Drain(DrainStage.OUTBOX, dispatcher.drain),
            Drain(DrainStage.CONNECTIONS, mailer.close),
        ),
    )


def _mailer(settings: Settings, clock: Clock) -> Mailer:
    builder = MessageBuilder(settings.mail_from, public_url(settings), clock)
    if settings.smtp_url is None:
        return FileMailer(settings.state_dir / "mail", builder)
    server = MailServer.parse(settings.smtp_url.get_secret_value())
    return SmtpMailer(server, builder)


def public_url(settings: Settings) -> str:
    """Return where links lead: a setting, never a value from a request (R26)."""
    host, _, port = settings.http_listen.rpartition(":")
    host = _LOOPBACK_OF_ANY.get(host, host)
    return settings.public_url or f"http://{host}:{port}"
