"""Handing letters to a mail server, which may be away, refuse, or hang up."""

import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiosmtplib import SMTPException

from server.domain.outbox.courier import PostAway
from server.domain.outbox.letters import Letter, Template
from server.mail.message import Stationery
from server.mail.smtp import MailServer, SmtpPost
from tests.fakes import NOON, Clock
from tests.mailbox import Mailbox, mailbox

STATIONERY = Stationery("no-reply@academy.example", "http://x", Clock())


@pytest_asyncio.fixture
async def box() -> AsyncIterator[Mailbox]:
    async with mailbox() as opened:
        yield opened


@pytest_asyncio.fixture
async def post(box: Mailbox) -> AsyncIterator[SmtpPost]:
    post = SmtpPost(MailServer.parse(box.url), STATIONERY)
    yield post
    await post.close()


def letter(to: str = "a@x.co") -> Letter:
    return Letter(7, NOON, Template.WELCOME, to, "ana")


async def test_letters_share_a_connection(box: Mailbox, post: SmtpPost) -> None:
    for _ in range(3):
        await post.send(letter())
    assert len(box.mails) == 3
    assert box.connections == 1


async def test_one_that_is_refused_stands_in_nobodys_way(
    box: Mailbox, post: SmtpPost
) -> None:
    """It fails by itself; the next one goes."""
    box.answers["b@x.co"] = "550 no such user"
    with pytest.raises(SMTPException):
        await post.send(letter("b@x.co"))
    await post.send(letter())
    assert [mail["To"] for mail in box.mails] == ["a@x.co"]


async def test_a_server_that_hung_up_is_called_again(box: Mailbox) -> None:
    """The connection is tried before a letter is given to it."""
    post = SmtpPost(MailServer.parse(box.url), STATIONERY, trusted=0)
    await post.send(letter())
    await box.hang_up()
    await post.send(letter())
    assert (len(box.mails), box.connections) == (2, 2)
    await post.close()


async def test_a_server_that_is_away() -> None:
    """Nothing listens there: no fault of the letter."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    post = SmtpPost(MailServer.parse(f"smtp://127.0.0.1:{port}"), STATIONERY)
    with pytest.raises(PostAway):
        await post.send(letter())
    await post.close()


async def test_a_password_is_not_for_everybody_on_the_way(box: Mailbox) -> None:
    """Where the server offers no encryption nothing is sent at all."""
    url = box.url.replace("smtp://", "smtp://ana:Blue7horse@")
    post = SmtpPost(MailServer.parse(url), STATIONERY)
    with pytest.raises(PostAway):
        await post.send(letter())
    assert not box.mails
    await post.close()
