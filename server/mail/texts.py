"""Texts of the e-mails: a subject, and plain text with fields to fill in.

Lines stay below 78 characters with their fields filled in, except for links.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.domain.outbox.emails import EmailTemplate


@dataclass(frozen=True, slots=True)
class Text:
    """The text of one e-mail; `page` is the target of its link, below PUBLIC_URL."""

    subject: str
    body: str
    page: str = ""


_NOT_YOU = """\
If this was not you, request a new password at once: it ends every session.
"""

_NEWS = """\
Hello {username},

{news}

You receive this e-mail because your notification settings ask for it. To stop
it, change your settings or use "unsubscribe" in your mail program.
"""

CONFIRM_ADDRESS = """\
Confirm that this is your e-mail address, within 24 hours:

{link}

If you have no account with us, you can ignore this e-mail.
"""

TEXTS: Mapping[EmailTemplate, Text] = {
    EmailTemplate.WELCOME: Text(
        "Welcome to Blatam Academy",
        """\
Welcome, {username}.

{confirm}""",
        "verify-email",
    ),
    EmailTemplate.VERIFICATION: Text(
        "Confirm your e-mail address",
        """\
Hello {username},

{confirm}""",
        "verify-email",
    ),
    EmailTemplate.PASSWORD_RESET: Text(
        "Choose a new password",
        """\
Hello {username},

someone, probably you, requested a new password for your account. Choose one
here, within 30 minutes:

{link}

If it was not you, you can ignore this e-mail: your password does not change.
""",
        "reset-password",
    ),
    EmailTemplate.PASSWORD_CHANGED: Text(
        "Your password was changed",
        f"""\
Hello {{username}},

your password was changed, and your other sessions were ended.

{_NOT_YOU}""",
    ),
    EmailTemplate.EMAIL_CHANGE: Text(
        "Confirm your new e-mail address",
        """\
Hello {username},

you asked to use this e-mail address for your account. Confirm it here, within
24 hours:

{link}

If it was not you, you can ignore this e-mail.
""",
        "verify-email",
    ),
    EmailTemplate.EMAIL_CHANGE_ASKED: Text(
        "Your e-mail address is about to change",
        f"""\
Hello {{username}},

someone, probably you, asked to use another e-mail address for your account.
This address stays in use until the new one is confirmed.

{_NOT_YOU}""",
    ),
    EmailTemplate.EMAIL_CHANGED: Text(
        "Your e-mail address was changed",
        """\
Hello {username},

your account no longer uses this e-mail address.

If this was not you, contact the academy at once.
""",
    ),
    EmailTemplate.ADDRESS_TAKEN: Text(
        "Your e-mail address was asked for",
        """\
Hello {username},

someone asked to use your e-mail address for another account. Nothing has
changed: the address belongs to your account. If it was you, log in as
{username}.
""",
    ),
    EmailTemplate.NEW_DEVICE: Text(
        "A log-in from a new device",
        f"""\
Hello {{username}},

someone, probably you, logged in from a new device or address:

  device:  {{device}}
  address: {{address}}

{_NOT_YOU}""",
    ),
    EmailTemplate.FAILED_LOG_INS: Text(
        "Many failed log-ins",
        """\
Hello {username},

many log-ins to your account have failed within an hour. Your account is not
locked, and your password has not changed. If you use the same password for
other services, change it.
""",
    ),
    EmailTemplate.FOLLOWED_POST: Text("Somebody you follow has posted", _NEWS),
    EmailTemplate.NEW_FOLLOWER: Text("Somebody follows you", _NEWS),
    EmailTemplate.DIGEST: Text("News of the academy", _NEWS),
}
