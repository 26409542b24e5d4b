"""Messages: no text of callers in headers, links from PUBLIC_URL only."""

from dataclasses import replace
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from server.domain.outbox.emails import Email, EmailTemplate
from server.mail.files import FileMailer
from server.mail.message import MessageBuilder
from server.mail.smtp import MailServer, StartTls
from server.mail.texts import TEXTS
from tests.fakes import NOON, Clock
from tests.mailbox import link_of, token_of

SENDER = "Blatam Academy <no-reply@academy.example>"
BUILDER = MessageBuilder(SENDER, "https://academy.example/app/", Clock())
DETAILS: dict[str, str | int | tuple[str, ...]] = {
    "device": "Phone",
    "address": "192.0.2.1",
    "factor": "Phone",
    "left": 9,
    "provider": "Example",
    "notifications": ("bea: On numbers", "cat follows you"),
}


def email(template: EmailTemplate, token: str = "", **details: str) -> Email:
    return Email(7, NOON, template, "a@x.co", "ana", token, details=DETAILS | details)


@pytest.mark.parametrize("template", EmailTemplate)
def test_every_template_has_a_text(template: EmailTemplate) -> None:
    """All fields are filled in, the token is in the link, and lines are short."""
    message = BUILDER.message(email(template, "T0KEN"))
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


def test_unsubscribe_headers_need_a_token_and_https() -> None:
    """RFC 8058: both headers, if the e-mail can be turned off over https; else none."""
    news = replace(email(EmailTemplate.DIGEST), unsubscribe_token="T0KEN")
    message = BUILDER.message(news)
    assert message["List-Unsubscribe"] == (
        "<https://academy.example/app/api/v1/unsubscribe/T0KEN>"
    )
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert "T0KEN" not in repr(news)
    plain = BUILDER.message(email(EmailTemplate.NEW_DEVICE))
    assert not [name for name in plain if name.startswith("List-")]
    local = replace(BUILDER, public_url="http://127.0.0.1:8080").message(news)
    assert not [name for name in local if name.startswith("List-")]


def test_message_id_is_the_same_when_repeated() -> None:
    """A receiver can recognise a repeated delivery."""
    first, again = (
        BUILDER.message(email(EmailTemplate.WELCOME))["Message-ID"] for _ in range(2)
    )
    assert first == again
    assert first.endswith("@academy.example>")


@pytest.mark.parametrize("address", ["a@x.co\r\nBcc: b@x.co", "a@x.co, b@x.co", "a"])
def test_address_cannot_add_headers(address: str) -> None:
    """A message is written for exactly one address, or not at all."""
    welcome = Email(7, NOON, EmailTemplate.WELCOME, address, "ana")
    with pytest.raises((ValueError, IndexError)):
        BUILDER.message(welcome)


def test_foreign_text_stays_on_its_line() -> None:
    """A device name is sent by clients and can be any text."""
    name = "x\r\n\r\nDear user,\x1b[31m é\u202e {link}" + "y" * 500
    body = BUILDER.message(email(EmailTemplate.NEW_DEVICE, device=name)).get_content()
    (line,) = (line for line in body.splitlines() if "device:" in line)
    assert line.startswith("  device:     x????Dear user,?[31m é? {link}yyy")
    assert len(line) < 120


def test_non_ascii_text_is_encoded() -> None:
    """The encoding is one that every relay accepts (RFC 2045)."""
    message = BUILDER.message(email(EmailTemplate.NEW_DEVICE, device="Ñandú"))
    assert message.as_bytes().isascii()
    assert "Ñandú" in message.get_content()


async def test_file_mailer_writes_private_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only their owner can read them; the console names the file and no secret.

    A repeated delivery writes the same file.
    """
    mailer = FileMailer(tmp_path / "mail", BUILDER)
    for _ in range(2):
        await mailer.send(email(EmailTemplate.PASSWORD_RESET, "T0KEN"))
    (file,) = (tmp_path / "mail").iterdir()
    assert file.suffix == ".eml"
    assert file.stat().st_mode & 0o077 == 0
    mail = message_from_bytes(file.read_bytes(), policy=policy.default)
    assert (mail["To"], token_of(mail)) == ("a@x.co", "T0KEN")
    output = capsys.readouterr().out
    assert output == f"mail: {file}\n" * 2


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
def test_smtp_url_is_parsed(url: str, server: MailServer) -> None:
    """With a password the connection is encrypted unless the URL says never."""
    assert MailServer.parse(url) == server
    assert "p/" not in repr(server)


@pytest.mark.parametrize(
    "url", ["http://h", "smtp://", "smtp://h?starttls=x", "smtp://h?tls=1", "smtp:h"]
)
def test_smtp_url_faults_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|may"):
        MailServer.parse(url)
