"""A letter as a message (RFC 5322): plain text, no caller's words in headers.

Links come from PUBLIC_URL alone (R26). A token stands behind the `#`, which browsers
send to no server and put into no Referer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr

from server.domain.outbox.emails import Email
from server.mail.texts import PROOF, TEXTS, Text

LONGEST_DETAIL = 100
_MICROSECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class MessageBuilder:
    """What every message has in common: who sends it, where its links lead."""

    sender: str
    public_url: str
    clock: Callable[[], datetime]

    @property
    def sender_address(self) -> str:
        """The bare address of the sender, for the envelope."""
        return parseaddr(self.sender)[1]

    @property
    def domain(self) -> str:
        """The domain that messages are named after."""
        return self.sender_address.rpartition("@")[2]

    def message(self, email: Email) -> EmailMessage:
        """Give the message of a letter, under the same id each time.

        Raises ValueError for an address that is none.
        """
        text = TEXTS[email.template]
        message = EmailMessage(policy=SMTP)
        message["From"] = self.sender
        message["To"] = Address(addr_spec=email.to)
        message["Subject"] = text.subject
        message["Date"] = format_datetime(self.clock().astimezone(UTC))
        message["Message-ID"] = f"<{name(email)}@{self.domain}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic replies
        body = self._body(text, email)
        # what most relays take; ASCII stands as it is, so that links can be copied
        charset, coding = ("us-ascii", "7bit")
        if not body.isascii():
            charset, coding = ("utf-8", "quoted-printable")
        message.set_content(body, charset=charset, cte=coding)
        return message

    def _body(self, text: Text, email: Email) -> str:
        details = {key: _told(value) for key, value in email.details.items()}
        link = f"{self.public_url.rstrip('/')}/{text.page}#token={email.token}"
        proof = PROOF.format(link=link) if email.token else ""
        return text.body.format_map(
            details | {"username": email.username, "link": link, "proof": proof}
        )


def name(email: Email) -> str:
    """Give what a letter is known by; unique, and the same when it is repeated."""
    return f"{email.entry}.{int(email.written_at.timestamp() * _MICROSECOND)}"


def _told(value: str | int | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return "\n".join(f"  {_plain(line)}" for line in value)
    return _plain(str(value))


def _plain(text: str) -> str:
    """Give one line of what somebody outside calls itself; nothing in it steers."""
    return "".join(c if c.isprintable() else "?" for c in text)[:LONGEST_DETAIL]
