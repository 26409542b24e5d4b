"""A real SMTP server (aiosmtpd) that keeps what it is given, and what the tests ask."""

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

SECONDS = 20


@dataclass
class Mailbox:
    """Every mail that was accepted. While it is shut, none is: callers wait.

    Without slots: aiosmtpd looks at every attribute of its handler, and not each of
    a class with slots can be had (Python 3.11.2).
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
        """What SMTP_URL names it by."""
        return f"smtp://{self.address}"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """Accept a mail, if its sender is still there when the box is open."""
        async with self._changed:
            await self._pass_the_door()
            if refused := self.answers.pop(envelope.rcpt_tos[0], ""):
                return refused
            content = envelope.content
            assert isinstance(content, bytes)
            mail = message_from_bytes(content, policy=policy.default)
            self.mails.append(mail)
            self._changed.notify_all()
        return "250 OK"

    async def _pass_the_door(self) -> None:
        """Wait until it is open; aiosmtpd cancels whoever hangs up meanwhile."""
        self.waiting += 1
        self._changed.notify_all()
        try:
            await self._changed.wait_for(lambda: not self._shut)
        finally:
            self.waiting -= 1
            self._changed.notify_all()

    def connect(self) -> SMTP:
        """Answer somebody who calls."""
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
        given: LoginPassword,
    ) -> AuthResult:
        self.log_ins.append((given.login, given.password))
        return AuthResult(success=True)

    async def hang_up(self) -> None:
        """End every connection."""
        for server in self._open:
            if server.transport:
                server.transport.close()
        await asyncio.sleep(0)

    async def shut(self) -> None:
        """Take nothing more for now."""
        self._shut = True

    async def open(self) -> None:
        """Take mails again, those of whoever has waited, too."""
        async with self._changed:
            self._shut = False
            self._changed.notify_all()

    async def someone_waits(self, number: int = 1) -> None:
        """Wait until so many mails stand before the shut box."""
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: self.waiting == number)

    async def filled(self, count: int) -> None:
        """Wait until there are so many mails."""
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(self.mails) >= count)

    async def mail(self, to: str, subject: str, number: int = 1) -> EmailMessage:
        """Wait for the first mail, or another, with this subject to this address."""

        def found() -> list[EmailMessage]:
            return [m for m in self.to(to) if subject in m["Subject"]]

        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(found()) >= number)
        return found()[number - 1]

    def to(self, address: str) -> list[EmailMessage]:
        """Give what has come to an address."""
        return [mail for mail in self.mails if mail["To"] == address]

    def subjects(self, address: str) -> list[str]:
        """Give what has come to an address, by subject."""
        return [mail["Subject"] for mail in self.to(address)]


def link_of(mail: EmailMessage) -> str:
    """Give the one link in a mail."""
    (link,) = re.findall(r"https?://\S+", mail.get_content())
    return str(link)


def token_of(mail: EmailMessage) -> str:
    """Give the token in a mail's link."""
    return link_of(mail).partition("#token=")[2]


def bound() -> socket:
    """Give a socket with a loopback port of its own; who calls there is refused."""
    found = socket()
    found.bind(("127.0.0.1", 0))
    return found


def address_of(listener: socket) -> str:
    """Give host and port as settings do."""
    return "{}:{}".format(*listener.getsockname())


@asynccontextmanager
async def mailbox(
    listener: socket | None = None, tls: SSLContext | None = None
) -> AsyncIterator[Mailbox]:
    """Serve SMTP, on a port of its own unless a bound socket is given."""
    box = Mailbox(tls=tls)
    loop = asyncio.get_running_loop()
    listener = listener or bound()
    server = await loop.create_server(box.connect, sock=listener)
    box.address = address_of(listener)
    try:
        yield box
    finally:
        await box.open()
        server.close()
        await server.wait_closed()
