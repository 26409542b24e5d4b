"""Handing letters to a mail server, which may be away, refuse, or hang up."""

import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import pytest_asyncio
from aiosmtplib import SMTPException
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from server.domain.outbox.emails import Email, MailerUnavailable, Template
from server.mail.message import MessageBuilder
from server.mail.smtp import MailServer, SmtpMailer
from tests.fakes import NOON, Clock
from tests.mailbox import Mailbox, mailbox

STATIONERY = MessageBuilder("no-reply@academy.example", "http://x", Clock())


@pytest_asyncio.fixture
async def box() -> AsyncIterator[Mailbox]:
    async with mailbox() as opened:
        yield opened


@pytest_asyncio.fixture
async def post(box: Mailbox) -> AsyncIterator[SmtpMailer]:
    post = SmtpMailer(MailServer.parse(box.url), STATIONERY)
    yield post
    await post.close()


def email(to: str = "a@x.co") -> Email:
    return Email(7, NOON, Template.WELCOME, to, "ana")


async def test_letters_share_a_connection(box: Mailbox, post: SmtpMailer) -> None:
    for _ in range(3):
        await post.send(email())
    assert len(box.mails) == 3
    assert box.connections == 1


async def test_one_that_is_refused_stands_in_nobodys_way(
    box: Mailbox, post: SmtpMailer
) -> None:
    """It fails by itself; the next one goes."""
    box.answers["b@x.co"] = "550 no such user"
    with pytest.raises(SMTPException):
        await post.send(email("b@x.co"))
    await post.send(email())
    assert [mail["To"] for mail in box.mails] == ["a@x.co"]


async def test_a_server_that_hung_up_is_called_again(box: Mailbox) -> None:
    """The connection is tried before a letter is given to it."""
    post = SmtpMailer(MailServer.parse(box.url), STATIONERY, trusted=0)
    await post.send(email())
    await box.hang_up()
    await post.send(email())
    assert (len(box.mails), box.connections) == (2, 2)
    await post.close()


async def test_a_server_that_is_away() -> None:
    """Nothing listens there: no fault of the letter."""
    post = SmtpMailer(MailServer.parse("smtp://127.0.0.1:1"), STATIONERY)
    with pytest.raises(MailerUnavailable):
        await post.send(email())
    await post.close()


async def test_a_password_is_not_for_everybody_on_the_way(box: Mailbox) -> None:
    """Where the server offers no encryption nothing is sent at all."""
    url = box.url.replace("smtp://", "smtp://ana:Blue7horse@")
    post = SmtpMailer(MailServer.parse(url), STATIONERY)
    with pytest.raises(MailerUnavailable):
        await post.send(email())
    assert not box.mails
    await post.close()


def certificate(folder: Path) -> Path:
    """Give a file with a key and its certificate for 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail")])
    here = x509.IPAddress(ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([here]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "mail.pem"
    file.write_bytes(private + made.public_bytes(pem))
    return file


async def test_an_encrypted_connection(tmp_path: Path) -> None:
    """By STARTTLS, with a certificate that must be good; then we log in."""
    file = certificate(tmp_path)
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(file)
    async with mailbox(tls=theirs) as box:
        url = box.url.replace("smtp://", "smtp://ana:Blue7horse@")
        server = MailServer.parse(url)
        stranger = SmtpMailer(server, STATIONERY)
        with pytest.raises(MailerUnavailable):
            await stranger.send(email())
        assert not box.log_ins
        post = SmtpMailer(
            server, STATIONERY, tls=ssl.create_default_context(cafile=file)
        )
        await post.send(email())
        assert box.log_ins == [(b"ana", b"Blue7horse")]
        assert len(box.mails) == 1
        await post.close()
