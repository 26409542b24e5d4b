"""What the letters say: a subject, and plain text with a few blanks to fill.

Lines stay below 78 characters with their blanks filled, but for links.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.domain.outbox.emails import Template


@dataclass(frozen=True, slots=True)
class Text:
    """One letter's text; `page` is where its link leads, below PUBLIC_URL."""

    subject: str
    body: str
    page: str = ""


_NOT_YOU = """\
If this was not you, ask for a new password at once: it ends every session.
"""

_NEWS = """\
Hello {username},

{news}

You get this because your settings ask for it, until they no longer do.
"""

TEXTS: Mapping[Template, Text] = {
    Template.WELCOME: Text(
        "Welcome to Blatam Academy",
        """\
Welcome, {username}.

{proof}""",
        "verify-email",
    ),
    Template.VERIFICATION: Text(
        "Confirm your e-mail address",
        """\
Hello {username},

{proof}""",
        "verify-email",
    ),
    Template.PASSWORD_RESET: Text(
        "Choose a new password",
        """\
Hello {username},

somebody, probably you, has asked for a new password. Choose one here,
within 30 minutes:

{link}

If it was not you, do nothing: your password stays as it is.
""",
        "reset-password",
    ),
    Template.PASSWORD_CHANGED: Text(
        "Your password was changed",
        f"""\
Hello {{username}},

your password was changed, and your other sessions were ended.

{_NOT_YOU}""",
    ),
    Template.EMAIL_CHANGE: Text(
        "Confirm your new e-mail address",
        """\
Hello {username},

you asked to use this address for your account from now on. Confirm it
here, within 24 hours:

{link}

If it was not you, do nothing.
""",
        "verify-email",
    ),
    Template.EMAIL_CHANGE_ASKED: Text(
        "Your e-mail address is about to change",
        f"""\
Hello {{username}},

somebody, probably you, has asked to use another e-mail address for your
account. This one stays in use until the other is confirmed.

{_NOT_YOU}""",
    ),
    Template.EMAIL_CHANGED: Text(
        "Your e-mail address was changed",
        """\
Hello {username},

your account no longer uses this address.

If this was not you, write to the academy at once.
""",
    ),
    Template.ADDRESS_TAKEN: Text(
        "Your e-mail address was asked for",
        """\
Hello {username},

somebody asked to use your e-mail address for another account. Nothing has
changed: it belongs to yours. If it was you, log in as {username}.
""",
    ),
    Template.NEW_DEVICE: Text(
        "A log-in from a new device",
        f"""\
Hello {{username}},

somebody, probably you, has logged in from where you had not before:

  device:  {{device}}
  address: {{address}}

{_NOT_YOU}""",
    ),
    Template.FAILED_LOG_INS: Text(
        "Many failed log-ins",
        """\
Hello {username},

many log-ins to your account have failed within an hour. Your account is not
locked, and your password was not changed. If you use it elsewhere, too,
change it.
""",
    ),
    Template.FOLLOWED_POST: Text("Somebody you follow has posted", _NEWS),
    Template.NEW_FOLLOWER: Text("Somebody follows you", _NEWS),
    Template.DIGEST: Text("News of the academy", _NEWS),
}

PROOF = """\
Confirm that this address is yours, within 24 hours:

{link}

If you have no account with us, do nothing.
"""
