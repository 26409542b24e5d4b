"""Mail by SMTP, over one connection that is reused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from ssl import SSLContext
from urllib.parse import parse_qs, unquote, urlsplit

from aiosmtplib import SMTP, SMTPException

from server.domain.outbox.emails import Email, MailerUnavailable
from server.mail.message import MessageBuilder

REPLY_TIMEOUT_SECONDS = 15.0
MAX_IDLE_SECONDS = 30.0
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
    """Sends e-mails to a mail server, one after the other.

    A connection that was idle for more than `check_after` seconds is checked before
    it is used. Its certificate is verified by `tls`, or else by the system's
    certificate authorities.
    """

    def __init__(
        self,
        server: MailServer,
        message_builder: MessageBuilder,
        check_after: float = 1.0,
        tls: SSLContext | None = None,
    ) -> None:
        self._server = server
        self._message_builder = message_builder
        self._check_after = check_after
        self._tls = tls
        self._smtp: SMTP | None = None
        self._used_at = 0.0

    async def send(self, email: Email) -> None:
        """Send an e-mail.

        Raises MailerUnavailable if the server cannot be reached or refuses the
        log-in, SMTPException if it refuses this message, and ValueError for an
        invalid address.
        """
        message = self._message_builder.message(email)
        smtp = await self._connected()
        try:
            await smtp.send_message(
                message,
                sender=self._message_builder.sender_address,
                recipients=[email.to],
            )
        except BaseException:
            smtp.close()  # the dialogue is in an unknown state
            raise
        self._used_at = asyncio.get_running_loop().time()

    async def ping(self) -> None:
        """Connect and log in. Raises MailerUnavailable."""
        await self._connected()

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._smtp and self._smtp.is_connected:
            try:
                async with asyncio.timeout(1):
                    await self._smtp.quit()
            except (SMTPException, OSError, TimeoutError):
                self._smtp.close()

    async def _connected(self) -> SMTP:
        """Return an open connection. Raises MailerUnavailable."""
        if self._smtp and await self._still_open(self._smtp):
            return self._smtp
        server = self._server
        self._smtp = SMTP(
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
            await self._smtp.connect()
        except (SMTPException, OSError, TimeoutError) as error:
            self._smtp.close()
            raise MailerUnavailable(type(error).__name__) from error
        return self._smtp

    async def _still_open(self, smtp: SMTP) -> bool:
        idle = asyncio.get_running_loop().time() - self._used_at
        if not smtp.is_connected or idle > MAX_IDLE_SECONDS:
            smtp.close()
            return False
        if idle < self._check_after:
            return True
        try:
            await smtp.noop()
        except (SMTPException, OSError, TimeoutError):
            smtp.close()
        return smtp.is_connected
