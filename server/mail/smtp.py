"""Mail by SMTP, over kept connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from ssl import SSLContext
from urllib.parse import parse_qs, unquote, urlsplit
from weakref import WeakValueDictionary

from aiosmtplib import SMTP, SMTPException

from server.domain.outbox.emails import Email, MailerBusy, MailerUnavailable
from server.mail.connection_pool import MAX_CONNECTIONS, SmtpConnections
from server.mail.message import MessageBuilder

REPLY_TIMEOUT_SECONDS = 15.0
MAX_DOMAIN_WAIT_SECONDS = 2.0
_PORTS = {"smtp": 25, "smtps": 465}


class StartTls(StrEnum):
    """Whether a connection is encrypted after it is opened (RFC 3207)."""

    REQUIRED = "required"
    OFFERED = "offered"
    NEVER = "never"


_OPTIONS: dict[StartTls, bool | None] = {
    StartTls.REQUIRED: True,
    StartTls.OFFERED: None,
    StartTls.NEVER: False,
}


@dataclass(frozen=True, slots=True)
class MailServer:
    """The mail server of an SMTP_URL."""

    host: str
    port: int
    tls: bool
    start_tls: StartTls
    username: str | None
    password: str | None = field(repr=False)

    @staticmethod
    def parse(url: str) -> MailServer:
        """Parse smtp://user:password@host:587?starttls=required, or smtps://...

        With a password STARTTLS is required unless the URL says `never`, so that the
        password is not sent in clear text by default. Raises ValueError.
        """
        parsed = urlsplit(url)
        if parsed.scheme not in _PORTS or not parsed.hostname:
            raise ValueError("must be smtp://HOST:PORT or smtps://HOST:PORT")
        tls = parsed.scheme == "smtps"
        query = parse_qs(parsed.query, keep_blank_values=True)
        default = StartTls.REQUIRED if parsed.password else StartTls.OFFERED
        (option,) = query.pop("starttls", [default])
        if query or option not in set(StartTls):
            raise ValueError("may have ?starttls=required, offered or never")
        return MailServer(
            host=parsed.hostname,
            port=parsed.port or _PORTS[parsed.scheme],
            tls=tls,
            start_tls=StartTls.NEVER if tls else StartTls(option),
            username=unquote(parsed.username) if parsed.username else None,
            password=unquote(parsed.password) if parsed.password else None,
        )


class SmtpMailer:
    """Sends e-mails to a mail server, some at a time, over connections that it keeps.

    A server's certificate is verified by `tls`, or else by the system's certificate
    authorities. For `check_after` and `max_connections` see SmtpConnections.
    """

    def __init__(
        self,
        server: MailServer,
        message_builder: MessageBuilder,
        check_after: float = 1.0,
        tls: SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._server = server
        self._message_builder = message_builder
        self._tls = tls
        self._connections = SmtpConnections(self._connect, check_after, max_connections)
        # A domain whose server is slow must not occupy all connections.
        self._max_per_domain = max(1, max_connections // 2)
        self._domains: WeakValueDictionary[str, asyncio.Semaphore] = (
            WeakValueDictionary()
        )

    async def send(self, email: Email) -> None:
        """Send an e-mail.

        Raises MailerUnavailable if the server cannot be reached or refuses the
        log-in, MailerBusy if too many e-mails to the same domain are being sent,
        SMTPException if the server refuses this message, and ValueError for an
        invalid address.
        """
        message = self._message_builder.message(email)
        async with (
            self._domain_place(email.to.rpartition("@")[2]),
            self._connections.connection() as smtp,
        ):
            await smtp.send_message(
                message,
                sender=self._message_builder.sender_address,
                recipients=[email.to],
            )

    async def ping(self) -> None:
        """Connect and log in. Raises MailerUnavailable."""
        async with self._connections.connection():
            pass

    async def close(self) -> None:
        """Close the connections that are not in use."""
        await self._connections.close()

    @asynccontextmanager
    async def _domain_place(self, domain: str) -> AsyncIterator[None]:
        """Wait for one of the places of a domain. Raises MailerBusy."""
        places = self._domains.get(domain)
        if places is None:
            places = self._domains[domain] = asyncio.Semaphore(self._max_per_domain)
        try:
            async with asyncio.timeout(MAX_DOMAIN_WAIT_SECONDS):
                await places.acquire()
        except TimeoutError:
            raise MailerBusy from None
        try:
            yield
        finally:
            places.release()

    async def _connect(self) -> SMTP:
        """Return an open connection. Raises MailerUnavailable."""
        server = self._server
        smtp = SMTP(
            hostname=server.host,
            port=server.port,
            username=server.username,
            password=server.password,
            use_tls=server.tls,
            start_tls=_OPTIONS[server.start_tls],
            tls_context=self._tls,
            local_hostname=self._message_builder.domain,
            timeout=REPLY_TIMEOUT_SECONDS,
        )
        try:
            await smtp.connect()
        except (SMTPException, OSError, TimeoutError) as error:
            smtp.close()
            raise MailerUnavailable(type(error).__name__) from error
        return smtp
