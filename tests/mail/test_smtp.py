"""Sending e-mails to a mail server that may be down, refuse, or disconnect."""

import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email import policy
from ipaddress import ip_address
from pathlib import Path

import pytest
import pytest_asyncio
from aiosmtplib import SMTPException
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from server.domain.outbox.emails import Email, EmailTemplate, MailerUnavailable
from server.mail.message import MessageBuilder
from server.mail.smtp import MailServer, SmtpMailer
from tests.fakes import NOON, Clock
from tests.mailbox import Mailbox, mailbox

WIDE = policy.default.clone(max_line_length=998, refold_source="none")
BUILDER = MessageBuilder("no-reply@academy.example", "https://x", Clock())


@pytest_asyncio.fixture
async def box() -> AsyncIterator[Mailbox]:
    async with mailbox() as opened:
        yield opened


@pytest_asyncio.fixture
async def mailer(box: Mailbox) -> AsyncIterator[SmtpMailer]:
    mailer = SmtpMailer(MailServer.parse(box.url), BUILDER)
    yield mailer
    await mailer.close()


def email(to: str = "a@x.co") -> Email:
    return Email(7, NOON, EmailTemplate.WELCOME, to, "ana")


async def test_mailer_reuses_its_connection(box: Mailbox, mailer: SmtpMailer) -> None:
    """Three e-mails, one connection."""
    for _ in range(3):
        await mailer.send(email())
    assert len(box.mails) == 3
    assert box.connections == 1


async def test_refused_email_does_not_stop_the_next(
    box: Mailbox, mailer: SmtpMailer
) -> None:
    """It fails by itself; the next one is sent."""
    box.answers["b@x.co"] = "550 no such user"
    with pytest.raises(SMTPException):
        await mailer.send(email("b@x.co"))
    await mailer.send(email())
    assert [mail["To"] for mail in box.mails] == ["a@x.co"]


async def test_mailer_reconnects_after_a_disconnect(box: Mailbox) -> None:
    """An idle connection is checked before it is used."""
    mailer = SmtpMailer(MailServer.parse(box.url), BUILDER, check_after=0)
    await mailer.send(email())
    await box.hang_up()
    await mailer.send(email())
    assert (len(box.mails), box.connections) == (2, 2)
    await mailer.close()


async def test_unreachable_server_is_mailer_unavailable() -> None:
    """Nothing listens on the port: not a failure of the e-mail."""
    mailer = SmtpMailer(MailServer.parse("smtp://127.0.0.1:1"), BUILDER)
    with pytest.raises(MailerUnavailable):
        await mailer.send(email())
    await mailer.close()


async def test_password_is_never_sent_in_clear_text(box: Mailbox) -> None:
    """If the server offers no encryption, nothing is sent."""
    url = box.url.replace("smtp://", "smtp://ana:Blue7horse@")
    mailer = SmtpMailer(MailServer.parse(url), BUILDER)
    with pytest.raises(MailerUnavailable):
        await mailer.send(email())
    assert not box.mails
    await mailer.close()


async def test_unsubscribe_header_arrives_in_one_line(
    box: Mailbox, mailer: SmtpMailer
) -> None:
    """RFC 8058: the URL is not folded or encoded, however long it is."""
    token = "t" * 100
    news = Email(
        7,
        NOON,
        EmailTemplate.DIGEST,
        "a@x.co",
        "ana",
        "",
        token,
        {"notifications": ("bea: Hi",)},
    )
    await mailer.send(news)
    (mail,) = box.mails
    url = f"https://x/api/v1/unsubscribe/{token}"
    assert f"List-Unsubscribe: <{url}>\n" in mail.as_string(policy=WIDE)
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


def certificate(folder: Path) -> Path:
    """Return a file with a key and a self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail")])
    address = x509.IPAddress(ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "mail.pem"
    file.write_bytes(private + certificate.public_bytes(pem))
    return file


async def test_starttls_needs_a_valid_certificate(tmp_path: Path) -> None:
    """Only an encrypted connection to a verified server gets the password."""
    file = certificate(tmp_path)
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_tls.load_cert_chain(file)
    async with mailbox(tls=server_tls) as box:
        url = box.url.replace("smtp://", "smtp://ana:Blue7horse@")
        server = MailServer.parse(url)
        untrusting = SmtpMailer(server, BUILDER)
        with pytest.raises(MailerUnavailable):
            await untrusting.send(email())
        assert not box.log_ins
        mailer = SmtpMailer(
            server, BUILDER, tls=ssl.create_default_context(cafile=file)
        )
        await mailer.send(email())
        assert box.log_ins == [(b"ana", b"Blue7horse")]
        assert len(box.mails) == 1
        await mailer.close()
