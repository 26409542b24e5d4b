"""A real SMTP server (aiosmtpd) that keeps its e-mails, and queries for tests."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from socket import socket
from ssl import SSLContext

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

TIMEOUT_SECONDS = 20


@dataclass
class Mailbox:
    """The accepted e-mails. While it is shut, clients wait and none is accepted.

    Without slots: aiosmtpd reads every attribute of its handler, which fails for a
    class with slots (Python 3.11.2).
    """

    address: str = ""
    mails: list[EmailMessage] = field(default_factory=list)
    waiting: int = 0
    answers: dict[str, str] = field(default_factory=dict)  # by recipient, once
    connections: int = 0
    log_ins: list[tuple[bytes, bytes]] = field(default_factory=list)
    tls: SSLContext | None = None
    _open: list[SMTP] = field(default_factory=list)
    _shut: bool = False
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        """The value of SMTP_URL."""
        return f"smtp://{self.address}"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """Accept an e-mail, unless its sender disconnects before the box is open."""
        async with self._changed:
            await self._wait_until_open()
            if refused := self.answers.pop(envelope.rcpt_tos[0], ""):
                return refused
            content = envelope.content
            assert isinstance(content, bytes)
            mail = message_from_bytes(content, policy=policy.default)
            self.mails.append(mail)
            self._changed.notify_all()
        return "250 OK"

    async def _wait_until_open(self) -> None:
        """Wait until it is open; aiosmtpd cancels a client that disconnects."""
        self.waiting += 1
        self._changed.notify_all()
        try:
            await self._changed.wait_for(lambda: not self._shut)
        finally:
            self.waiting -= 1
            self._changed.notify_all()

    def connect(self) -> SMTP:
        """Return the protocol of a new connection."""
        self.connections += 1
        self._open.append(
            SMTP(
                self,
                loop=asyncio.get_running_loop(),
                tls_context=self.tls,
                authenticator=self._authenticate,
            )
        )
        return self._open[-1]

    def _authenticate(
        self,
        _server: SMTP,
        _session: Session,
        _envelope: Envelope,
        _mechanism: str,
        credentials: LoginPassword,
    ) -> AuthResult:
        self.log_ins.append((credentials.login, credentials.password))
        return AuthResult(success=True)

    async def hang_up(self) -> None:
        """Close every connection."""
        for server in self._open:
            if server.transport:
                server.transport.close()
        await asyncio.sleep(0)

    async def shut(self) -> None:
        """Accept no e-mail until it is opened again."""
        self._shut = True

    async def open(self) -> None:
        """Accept e-mails again, also those of waiting clients."""
        async with self._changed:
            self._shut = False
            self._changed.notify_all()

    async def clients_wait(self, number: int = 1) -> None:
        """Wait until exactly `number` clients wait for the box to open."""
        async with asyncio.timeout(TIMEOUT_SECONDS), self._changed:
            await self._changed.wait_for(lambda: self.waiting == number)

    async def filled(self, count: int) -> None:
        """Wait until there are `count` e-mails."""
        async with asyncio.timeout(TIMEOUT_SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(self.mails) >= count)

    async def mail(self, to: str, subject: str, number: int = 1) -> EmailMessage:
        """Wait for the e-mail, by number from 1, with this subject to this address."""

        def matching() -> list[EmailMessage]:
            return [m for m in self.to(to) if subject in m["Subject"]]

        async with asyncio.timeout(TIMEOUT_SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(matching()) >= number)
        return matching()[number - 1]

    def to(self, address: str) -> list[EmailMessage]:
        """Return the e-mails to an address."""
        return [mail for mail in self.mails if mail["To"] == address]

    def subjects(self, address: str) -> list[str]:
        """Return the subjects of the e-mails to an address."""
        return [mail["Subject"] for mail in self.to(address)]


def link_of(mail: EmailMessage) -> str:
    """Return the only link in an e-mail."""
    (link,) = re.findall(r"https?://\S+", mail.get_content())
    return str(link)


def token_of(mail: EmailMessage) -> str:
    """Return the token in an e-mail's link."""
    return link_of(mail).partition("#token=")[2]


def bound_socket() -> socket:
    """Return a socket bound to a free loopback port; it refuses connections."""
    listener = socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def address_of(listener: socket) -> str:
    """Return host and port as settings write them."""
    return "{}:{}".format(*listener.getsockname())


@asynccontextmanager
async def mailbox(
    listener: socket | None = None, tls: SSLContext | None = None
) -> AsyncIterator[Mailbox]:
    """Serve SMTP on a bound socket, or else on a free port."""
    box = Mailbox(tls=tls)
    loop = asyncio.get_running_loop()
    listener = listener or bound_socket()
    server = await loop.create_server(box.connect, sock=listener)
    box.address = address_of(listener)
    try:
        yield box
    finally:
        await box.open()
        server.close()
        await server.wait_closed()
