"""E-mails as messages (RFC 5322): plain text, no text of callers in headers.

Links come from PUBLIC_URL only (R26). A token stands behind the `#`, which browsers
do not send to servers or in Referer; the link of one-click unsubscription, which e-mail
providers post to, is the exception.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import (
    Address,
    BaseHeader,
    HeaderRegistry,
)
from email.message import EmailMessage
from email.policy import SMTP, Policy
from email.utils import format_datetime, parseaddr
from functools import cache
from typing import Any

from server.domain.outbox.emails import Email
from server.mail.texts import CONFIRM_ADDRESS, TEXTS, Text

MAX_DETAIL_LENGTH = 100
UNSUBSCRIBE_PATH = "/api/v1/unsubscribe/"
_MICROSECONDS_PER_SECOND = 1_000_000


class OneLineHeader(BaseHeader):
    """A header of ASCII text that is neither parsed nor folded.

    Folding a long URL would encode it (RFC 2047). Parsing the headers of one e-mail,
    all of which are our own, takes half of the CPU time of sending it.
    """

    max_count = 1

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        """Take the value as it is. Raises ValueError if it is not ASCII."""
        if not value.isascii():
            raise ValueError("a header that is not parsed must be ASCII")
        kwds.update(parse_tree=None, decoded=value, defects=[])

    def fold(self, *, policy: Policy) -> str:
        """Return the header in one line, whatever its length."""
        return f"{self.name}: {self}{policy.linesep}"


_HEADERS = HeaderRegistry()
for _name in (
    *("to", "date", "message-id", "auto-submitted"),
    *("list-unsubscribe", "list-unsubscribe-post"),
):
    _HEADERS.map_to_type(_name, OneLineHeader)
_POLICY = SMTP.clone(header_factory=_HEADERS)


@cache
def _header(name: str, value: str) -> BaseHeader:
    """Return a header with one of few values; parsing it takes long."""
    header: BaseHeader = _HEADERS(name, value)
    return header


@dataclass(frozen=True, slots=True)
class MessageBuilder:
    """Builds messages from one sender, with links to one public URL."""

    sender: str
    public_url: str
    clock: Callable[[], datetime]

    @property
    def sender_address(self) -> str:
        """The bare address of the sender, for the envelope."""
        return parseaddr(self.sender)[1]

    @property
    def domain(self) -> str:
        """The domain in the Message-ID."""
        return self.sender_address.rpartition("@")[2]

    def message(self, email: Email) -> EmailMessage:
        """Return the message of an e-mail, under the same Message-ID each time.

        Raises ValueError for an invalid address.
        """
        text = TEXTS[email.template]
        message = EmailMessage(policy=_POLICY)
        message["From"] = _header("From", self.sender)
        message["To"] = str(Address(addr_spec=email.to))
        message["Subject"] = _header("Subject", text.subject)
        message["Date"] = format_datetime(self.clock().astimezone(UTC))
        message["Message-ID"] = f"<{message_name(email)}@{self.domain}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic replies
        # RFC 8058 3.1: one click, without a log-in; the URL must be https
        if email.unsubscribe_token and self.public_url.startswith("https://"):
            url = self._url(UNSUBSCRIBE_PATH + email.unsubscribe_token)
            message["List-Unsubscribe"] = f"<{url}>"
            message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
        body = self._body(text, email)
        # what most relays accept; ASCII is not encoded, so that links can be copied
        charset, encoding = ("us-ascii", "7bit")
        if not body.isascii():
            charset, encoding = ("utf-8", "quoted-printable")
        message.set_content(body, charset=charset, cte=encoding)
        return message

    def _body(self, text: Text, email: Email) -> str:
        details = {key: _detail(value) for key, value in email.details.items()}
        link = self._url(f"/{text.page}#token={email.token}")
        confirm = CONFIRM_ADDRESS.format(link=link) if email.token else ""
        values = {"username": email.username, "token": email.token}
        return text.body.format_map(
            details | values | {"link": link, "confirm": confirm}
        )

    def _url(self, path: str) -> str:
        return self.public_url.rstrip("/") + path


def message_name(email: Email) -> str:
    """Return the unique name of an e-mail; a repeated delivery has the same name."""
    written_at = int(email.written_at.timestamp() * _MICROSECONDS_PER_SECOND)
    return f"{email.entry}.{written_at}"


def _detail(value: str | int | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return "\n".join(f"  {_plain(line)}" for line in value)
    return _plain(str(value))


def _plain(text: str) -> str:
    """Return a bounded line of foreign text without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)[:MAX_DETAIL_LENGTH]
