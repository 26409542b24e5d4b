"""Sending many e-mails at a time: connections, domains, and servers with limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiosmtplib import SMTP, SMTPException

from server.domain.outbox.emails import Email, MailerBusy, MailerUnavailable
from server.mail.connection_pool import MAX_MAILS_PER_CONNECTION, SmtpConnections
from server.mail.smtp import MailServer, SmtpMailer
from tests.mail.test_smtp import BUILDER, email
from tests.mailbox import Mailbox, mailbox

MAX_CONNECTIONS = 4


@asynccontextmanager
async def mailer_of(
    box: Mailbox, max_connections: int = MAX_CONNECTIONS
) -> AsyncIterator[SmtpMailer]:
    mailer = SmtpMailer(
        MailServer.parse(box.url), BUILDER, max_connections=max_connections
    )
    yield mailer
    await mailer.close()


def emails(count: int, domain: str = "") -> list[Email]:
    return [email(f"m{n}@{domain or f'd{n}.example'}") for n in range(count)]


async def test_mailer_sends_at_the_same_time_over_kept_connections() -> None:
    """Never over more than the maximum, which it uses again."""
    async with mailbox() as box, mailer_of(box) as mailer:
        await box.shut()
        sending = [asyncio.create_task(mailer.send(e)) for e in emails(10)]
        await box.clients_wait(MAX_CONNECTIONS)
        await box.open()
        await asyncio.gather(*sending)
        assert len(box.mails) == 10
        assert box.connections == MAX_CONNECTIONS


async def test_mailer_leaves_connections_to_other_domains() -> None:
    """A domain whose server is slow gets half of them."""
    async with mailbox() as box, mailer_of(box) as mailer:
        await box.shut()
        slow = [asyncio.create_task(mailer.send(e)) for e in emails(10, "slow.example")]
        await box.clients_wait(MAX_CONNECTIONS // 2)
        other = asyncio.create_task(mailer.send(email("ana@other.example")))
        await box.clients_wait(MAX_CONNECTIONS // 2 + 1)
        await box.open()
        await asyncio.gather(*slow, other)
        assert len(box.mails) == 11


async def test_mail_waits_a_bounded_time_for_its_domain() -> None:
    async with mailbox() as box, mailer_of(box, max_connections=2) as mailer:
        await box.shut()
        first = asyncio.create_task(mailer.send(email("a@slow.example")))
        await box.clients_wait()
        with pytest.raises(MailerBusy):
            await mailer.send(email("b@slow.example"))
        await box.open()
        await first


async def test_mailer_replaces_connections_that_were_dropped() -> None:
    """No e-mail fails because the server has closed all idle connections."""
    async with mailbox() as box, mailer_of(box) as mailer:
        await asyncio.gather(*(mailer.send(e) for e in emails(10)))
        opened = box.connections
        await box.hang_up()
        await asyncio.sleep(0)
        await asyncio.gather(*(mailer.send(e) for e in emails(10)))
        assert len(box.mails) == 20
        assert box.connections > opened


async def test_mailer_replaces_connection_that_broke_while_sending() -> None:
    """That e-mail fails, and is the dispatcher's to repeat."""
    async with mailbox() as box, mailer_of(box, max_connections=2) as mailer:
        await box.shut()
        sending = asyncio.create_task(mailer.send(email()))
        await box.clients_wait()
        await box.hang_up()
        with pytest.raises(SMTPException):
            await sending
        await box.open()
        await mailer.send(email())
        assert len(box.mails) == 1


async def test_connection_is_replaced_after_many_mails() -> None:
    async with mailbox() as box, mailer_of(box, max_connections=1) as mailer:
        for _ in range(MAX_MAILS_PER_CONNECTION + 1):
            await mailer.send(email())
        assert box.connections == 2


async def connected(box: Mailbox) -> SMTP:
    host, port = box.address.split(":")
    smtp = SMTP(hostname=host, port=int(port))
    await smtp.connect()
    return smtp


async def test_server_that_limits_connections_is_used_with_those_it_accepts() -> None:
    """The refusal makes one e-mail wait, not all of them."""
    async with mailbox() as box:

        async def connect() -> SMTP:
            if box.connections == 2:
                raise MailerUnavailable("421 too many connections")
            return await connected(box)

        connections = SmtpConnections(connect, check_after=1)
        async with connections.connection(), connections.connection():
            with pytest.raises(MailerBusy):
                async with connections.connection():
                    pass
        async with connections.connection():
            assert box.connections == 2
        await connections.close()


async def test_mails_that_wait_for_a_connection_fail_together() -> None:
    """One attempt shows that the server is unavailable."""
    attempts = 0

    async def connect() -> SMTP:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0)
        raise MailerUnavailable("down")

    connections = SmtpConnections(connect, check_after=1)

    async def send() -> None:
        async with connections.connection():
            pass

    results = await asyncio.gather(*(send() for _ in range(10)), return_exceptions=True)
    assert [type(result) for result in results] == [MailerUnavailable] * 10
    assert attempts == 1
