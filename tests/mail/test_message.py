"""Messages: nothing of a caller's in headers, links from PUBLIC_URL alone."""

from email import message_from_bytes, policy
from pathlib import Path

import pytest

from server.domain.outbox.emails import Email, Template
from server.mail.files import FileMailer
from server.mail.message import MessageBuilder
from server.mail.smtp import MailServer, StartTls
from server.mail.texts import TEXTS
from tests.fakes import NOON, Clock
from tests.mailbox import link_of, token_of

SENDER = "Blatam Academy <no-reply@academy.example>"
STATIONERY = MessageBuilder(SENDER, "https://academy.example/app/", Clock())
DETAILS: dict[str, str | int | tuple[str, ...]] = {
    "device": "Phone",
    "address": "192.0.2.1",
    "news": ("bea: On numbers", "cat follows you"),
}


def email(template: Template, token: str = "", **details: str) -> Email:
    return Email(7, NOON, template, "a@x.co", "ana", token, DETAILS | details)


@pytest.mark.parametrize("template", Template)
def test_every_letter_has_a_text(template: Template) -> None:
    """All blanks are filled, the token is in the link, and lines are short."""
    message = STATIONERY.message(email(template, "T0KEN"))
    body = message.get_content()
    assert "{" not in body
    assert "ana" in body
    assert message["Subject"] == TEXTS[template].subject
    assert all(len(line) <= 78 for line in body.splitlines())
    if TEXTS[template].page:
        page = TEXTS[template].page
        assert link_of(message) == f"https://academy.example/app/{page}#token=T0KEN"
        assert token_of(message) == "T0KEN"
    else:
        assert "T0KEN" not in message.as_string()


def test_a_repeat_bears_the_same_name() -> None:
    """So that whoever gets a mail twice can tell."""
    first, again = (
        STATIONERY.message(email(Template.WELCOME))["Message-ID"] for _ in range(2)
    )
    assert first == again
    assert first.endswith("@academy.example>")


@pytest.mark.parametrize("address", ["a@x.co\r\nBcc: b@x.co", "a@x.co, b@x.co", "a"])
def test_an_address_brings_no_headers(address: str) -> None:
    """An address is one address, or the mail is not made."""
    email = Email(7, NOON, Template.WELCOME, address, "ana")
    with pytest.raises((ValueError, IndexError)):
        STATIONERY.message(email)


def test_what_comes_from_outside_stays_a_line() -> None:
    """A device may call itself what it likes."""
    name = "x\r\n\r\nDear user,\x1b[31m é\u202e {link}" + "y" * 500
    body = STATIONERY.message(email(Template.NEW_DEVICE, device=name)).get_content()
    (line,) = (line for line in body.splitlines() if "device:" in line)
    assert line.startswith("  device:  x????Dear user,?[31m é? {link}yyy")
    assert len(line) < 120


def test_other_letters_than_ascii_arrive() -> None:
    """In a form that every relay passes on (RFC 2045)."""
    message = STATIONERY.message(email(Template.NEW_DEVICE, device="Ñandú"))
    assert message.as_bytes().isascii()
    assert "Ñandú" in message.get_content()


async def test_without_a_server_mails_are_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read by their owner alone; the console names the file and no secret.

    A repeat is the same file.
    """
    post = FileMailer(tmp_path / "mail", STATIONERY)
    for _ in range(2):
        await post.send(email(Template.PASSWORD_RESET, "T0KEN"))
    (file,) = (tmp_path / "mail").iterdir()
    assert file.suffix == ".eml"
    assert file.stat().st_mode & 0o077 == 0
    mail = message_from_bytes(file.read_bytes(), policy=policy.default)
    assert (mail["To"], token_of(mail)) == ("a@x.co", "T0KEN")
    said = capsys.readouterr().out
    assert said == f"mail: {file}\n" * 2


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://h", MailServer("h", 25, False, StartTls.OFFERED, None, None)),
        ("smtps://h", MailServer("h", 465, True, StartTls.NEVER, None, None)),
        (
            "smtp://u%40x:p%2F@h:587",
            MailServer("h", 587, False, StartTls.REQUIRED, "u@x", "p/"),
        ),
        (
            "smtp://u:p@[::1]:25?starttls=never",
            MailServer("::1", 25, False, StartTls.NEVER, "u", "p"),
        ),
    ],
)
def test_what_smtp_url_says(url: str, server: MailServer) -> None:
    """With a password the connection is encrypted unless the URL says never."""
    assert MailServer.parse(url) == server
    assert "p/" not in repr(server)


@pytest.mark.parametrize(
    "url", ["http://h", "smtp://", "smtp://h?starttls=x", "smtp://h?tls=1", "smtp:h"]
)
def test_what_smtp_url_may_not_say(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|may"):
        MailServer.parse(url)
