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
If this was not you, reset your password immediately. The reset ends all your
sessions.
"""

_NOT_YOU_FACTOR = """\
If this was not you, reset your password immediately, and remove what you did
not add from the second factors of your account.
"""

_NOTIFICATION = """\
Hello {username},

{notifications}

You receive this e-mail because of your notification settings. To stop these
e-mails, change your settings or use "unsubscribe" in your e-mail program.
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

Someone, probably you, asked to reset the password of your account. Choose a
new password here, within 30 minutes:

{link}

If this was not you, you can ignore this e-mail. Your password will not
change.
""",
        "reset-password",
    ),
    EmailTemplate.LOGIN_CODE: Text(
        "Your log-in code",
        """\
Hello {username},

Someone, probably you, asked for a code to log in to your account:

  {token}

Enter the code within 10 minutes, in the browser in which you asked for it, or
open this page in that browser:

{link}

The code works once. Do not give it to anyone: nobody at the academy will ask
for it. If this was not you, you can ignore this e-mail.
""",
        "log-in-code",
    ),
    EmailTemplate.PASSWORD_CHANGED: Text(
        "Your password was changed",
        f"""\
Hello {{username}},

Your password was changed, and your sessions on other devices were ended.

{_NOT_YOU}""",
    ),
    EmailTemplate.EMAIL_CHANGE: Text(
        "Confirm your new e-mail address",
        """\
Hello {username},

You asked to use this e-mail address for your account. Confirm the address
here, within 24 hours:

{link}

If this was not you, you can ignore this e-mail.
""",
        "verify-email",
    ),
    EmailTemplate.EMAIL_CHANGE_ASKED: Text(
        "A change of your e-mail address was requested",
        f"""\
Hello {{username}},

Someone, probably you, asked to use another e-mail address for your account.
Your account uses this address until the new address is confirmed.

{_NOT_YOU}""",
    ),
    EmailTemplate.EMAIL_CHANGED: Text(
        "Your e-mail address was changed",
        """\
Hello {username},

Your account no longer uses this e-mail address.

If this was not you, contact the academy immediately.
""",
    ),
    EmailTemplate.ADDRESS_TAKEN: Text(
        "Someone tried to use your e-mail address",
        """\
Hello {username},

Someone tried to use your e-mail address for another account. Nothing has
changed: the address still belongs to your account. If this was you, log in
as {username}.
""",
    ),
    EmailTemplate.NEW_DEVICE: Text(
        "A log-in from a new device",
        f"""\
Hello {{username}},

Someone, probably you, logged in from a new device or a new IP address:

  device:     {{device}}
  IP address: {{address}}

{_NOT_YOU}""",
    ),
    EmailTemplate.FAILED_LOG_INS: Text(
        "Many failed log-ins",
        """\
Hello {username},

Many log-ins to your account have failed within an hour. Your account is not
locked, and your password has not changed. If you use this password for other
services, too, choose a new password for your account.
""",
    ),
    EmailTemplate.FACTOR_ADDED: Text(
        "A second factor was added to your account",
        f"""\
Hello {{username}},

An authenticator app was added to your account:

  {{factor}}

From now on, a log-in with your password also needs a code of the app. Keep
your recovery codes for the day on which you lose it.

{_NOT_YOU_FACTOR}""",
    ),
    EmailTemplate.PASSKEY_ADDED: Text(
        "A passkey was added to your account",
        f"""\
Hello {{username}},

A passkey was added to your account:

  {{factor}}

You can log in with it instead of your password.

{_NOT_YOU_FACTOR}""",
    ),
    EmailTemplate.PASSKEY_COPIED: Text(
        "A passkey of your account may have been copied",
        """\
Hello {username},

A log-in to your account was refused. Its passkey counts how often it is used,
and the count was not above the last one. Someone may have a copy of it:

  {factor}

Remove it from the second factors of your account, and add a new one.
""",
    ),
    EmailTemplate.FACTOR_REMOVED: Text(
        "A second factor was removed from your account",
        f"""\
Hello {{username}},

This second factor was removed from your account:

  {{factor}}

{_NOT_YOU}""",
    ),
    EmailTemplate.RECOVERY_CODE_USED: Text(
        "A recovery code of your account was used",
        f"""\
Hello {{username}},

Someone, probably you, logged in with one of your recovery codes. It cannot be
used again. Unused recovery codes: {{left}}.

{_NOT_YOU}""",
    ),
    EmailTemplate.RECOVERY_CODES_REPLACED: Text(
        "Your recovery codes were replaced",
        f"""\
Hello {{username}},

Your account has new recovery codes. The previous ones are no longer valid.

{_NOT_YOU}""",
    ),
    EmailTemplate.IDENTITY_LINKED: Text(
        "Another way to log in was added to your account",
        f"""\
Hello {{username}},

You can now log in to your account with your account at another service:

  {{provider}}

{_NOT_YOU}""",
    ),
    EmailTemplate.IDENTITY_UNLINKED: Text(
        "A way to log in was removed from your account",
        f"""\
Hello {{username}},

You can no longer log in to your account with your account at this service:

  {{provider}}

{_NOT_YOU}""",
    ),
    EmailTemplate.IMPERSONATED: Text(
        "An administrator acted as you",
        """\
Hello {username},

An administrator of the academy can act as you for 15 minutes, for example to
solve a problem that you reported. Nobody can change your password, your
e-mail address or your second factors in this way.

If you did not ask for help, contact the academy.
""",
    ),
    EmailTemplate.FOLLOWED_POST: Text("Someone you follow has posted", _NOTIFICATION),
    EmailTemplate.NEW_FOLLOWER: Text("Someone follows you", _NOTIFICATION),
    EmailTemplate.DIGEST: Text("Your daily summary", _NOTIFICATION),
}
