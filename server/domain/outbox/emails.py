"""Composes the e-mail of an outbox entry: its recipient and its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from server.domain.accounts.users import User
from server.domain.credentials.mailed_tokens import MailedTokens, Purpose
from server.domain.credentials.stores import Account
from server.domain.members.unsubscriptions import SETTINGS_BY_KIND, UnsubscribeTokens
from server.domain.outbox.entries import Entry, EventType

WARNING_INTERVAL = timedelta(days=1)


class MailerUnavailable(Exception):
    """No e-mail can be sent at present, whatever its recipient and content."""


class MailerBusy(Exception):
    """An e-mail has to wait: too many others are being sent to the same place."""


class EmailTemplate(StrEnum):
    """The kinds of e-mails; each has a text."""

    WELCOME = "welcome"
    VERIFICATION = "verification"
    PASSWORD_RESET = "password_reset"  # noqa: S105 - a template's name
    LOGIN_CODE = "login_code"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - a template's name
    EMAIL_CHANGE = "email_change"
    EMAIL_CHANGE_ASKED = "email_change_asked"
    EMAIL_CHANGED = "email_changed"
    ADDRESS_TAKEN = "address_taken"
    NEW_DEVICE = "new_device"
    FAILED_LOG_INS = "failed_log_ins"
    FACTOR_ADDED = "factor_added"
    FACTOR_REMOVED = "factor_removed"
    PASSKEY_ADDED = "passkey_added"
    PASSKEY_COPIED = "passkey_copied"
    RECOVERY_CODE_USED = "recovery_code_used"
    RECOVERY_CODES_REPLACED = "recovery_codes_replaced"
    IDENTITY_LINKED = "identity_linked"
    IDENTITY_UNLINKED = "identity_unlinked"
    IMPERSONATED = "impersonated"
    FOLLOWED_POST = "followed_post"
    NEW_FOLLOWER = "new_follower"
    DIGEST = "digest"


@dataclass(frozen=True, slots=True)
class Email:
    """An e-mail to one address; `entry` and `written_at` identify it.

    `token` is what its link ends with, "" if it has no link; `unsubscribe_token` is ""
    if it cannot be turned off. `details` are untrusted text; a tuple holds lines.
    """

    entry: int
    written_at: datetime
    template: EmailTemplate
    to: str
    username: str
    token: str = field(default="", repr=False)
    unsubscribe_token: str = field(default="", repr=False)
    details: Mapping[str, str | int | tuple[str, ...]] = field(default_factory=dict)


class UserReader(Protocol):
    """Reads accounts, without a cache."""

    async def by_id(self, user_id: int) -> User | None:
        """Return the account with this id."""


class Accounts(Protocol):
    """Finds accounts by identifier."""

    async def account(self, identifier: str) -> Account | None:
        """Return the account with this normalized username or e-mail address."""


class DeliveryLog(Protocol):
    """Reads which e-mails were delivered."""

    async def delivered_since(
        self, kind: EventType, user_id: int, since: datetime
    ) -> bool:
        """Return whether an entry of this kind, written since, was delivered."""


@dataclass(frozen=True, slots=True)
class NotificationRange:
    """The notifications of a member with the ids `first` to `last`."""

    user_id: int
    first: int
    last: int


class LoginCodeMaker(Protocol):
    """Makes the codes of log-ins when their e-mails are sent."""

    async def make(self, entry: Entry, user_id: int, address: str) -> str:
        """Return the code of an entry; "" if its e-mail must not be sent."""


class NotificationReader(Protocol):
    """Reads members' notifications."""

    async def lines(self, notifications: NotificationRange) -> Sequence[str]:
        """Return the lines of the current notifications in a range."""


@dataclass(frozen=True, slots=True)
class EmailComposer:
    """Composes e-mails when they are sent, from the current data."""

    users: UserReader
    accounts: Accounts
    delivery_log: DeliveryLog
    tokens: MailedTokens
    login_codes: LoginCodeMaker
    notifications: NotificationReader
    unsubscribe_tokens: UnsubscribeTokens

    async def email(self, entry: Entry) -> Email | None:
        """Return the e-mail of an entry; None if there is nothing to send."""
        if entry.kind == EventType.PASSWORD_RESET:
            return await self._reset(entry)
        if entry.kind == EventType.LOGIN_CODE:
            return await self._login_code(entry)
        user = await self.users.by_id(entry.user_id or 0)
        if user is None or not user.is_active:
            return None
        if entry.kind in (EventType.WELCOME, EventType.VERIFICATION):
            return await self._verification(entry, user)
        if entry.kind == EventType.EMAIL_CHANGE:
            return await self._change(entry, user)
        if entry.kind in SETTINGS_BY_KIND:
            return await self._notification(entry, user)
        if entry.kind == EventType.FAILED_LOG_INS and await self._warned(entry, user):
            return None
        template = EmailTemplate(entry.kind.partition(".")[2])
        return _email(entry, template, user, entry.address or user.email)

    async def _named_user(self, entry: Entry) -> User | None:
        """Return the account whose identifier the entry has."""
        account = await self.accounts.account(entry.address or "")
        return await self.users.by_id(account.user_id) if account else None

    async def _login_code(self, entry: Entry) -> Email | None:
        user = await self._named_user(entry)
        if user is None:
            return None
        code = await self.login_codes.make(entry, user.id, user.email)
        if not code:
            return None
        return _email(entry, EmailTemplate.LOGIN_CODE, user, token=code)

    async def _reset(self, entry: Entry) -> Email | None:
        user = await self._named_user(entry)
        if user is None:
            return None
        return await self._with_token(
            entry, EmailTemplate.PASSWORD_RESET, Purpose.RESET, user
        )

    async def _verification(self, entry: Entry, user: User) -> Email | None:
        template = EmailTemplate(entry.kind.partition(".")[2])
        if not user.email_verified:
            return await self._with_token(entry, template, Purpose.VERIFY, user)
        return _email(entry, template, user) if template == "welcome" else None

    async def _change(self, entry: Entry, user: User) -> Email | None:
        """Ask the new address for confirmation; inform its owner if it is taken."""
        new_address = entry.address or ""
        account = await self.accounts.account(new_address)
        if account is None:
            return await self._with_token(
                entry, EmailTemplate.EMAIL_CHANGE, Purpose.CHANGE, user, new_address
            )
        owner = await self.users.by_id(account.user_id)
        if owner is None or not owner.is_active or owner.id == user.id:
            return None
        return _email(entry, EmailTemplate.ADDRESS_TAKEN, owner)

    async def _with_token(
        self,
        entry: Entry,
        template: EmailTemplate,
        purpose: Purpose,
        user: User,
        address: str = "",
    ) -> Email | None:
        to = address or user.email
        token = await self.tokens.make(purpose, entry, user.id, to)
        return _email(entry, template, user, to, token) if token else None

    async def _notification(self, entry: Entry, user: User) -> Email | None:
        first, last = int(entry.payload["first"]), int(entry.payload["last"])
        lines = await self.notifications.lines(NotificationRange(user.id, first, last))
        if not lines:
            return None
        template = EmailTemplate(entry.kind.partition(".")[2])
        return replace(
            _email(entry, template, user),
            unsubscribe_token=self.unsubscribe_tokens.make(
                user.id, EventType(entry.kind)
            ),
            details={"notifications": tuple(lines)},
        )

    async def _warned(self, entry: Entry, user: User) -> bool:
        since = entry.created_at - WARNING_INTERVAL
        return await self.delivery_log.delivered_since(
            EventType.FAILED_LOG_INS, user.id, since
        )


def _email(
    entry: Entry, template: EmailTemplate, user: User, to: str = "", token: str = ""
) -> Email:
    return Email(
        entry=entry.id,
        written_at=entry.created_at,
        template=template,
        to=to or user.email,
        username=user.username,
        token=token,
        details=entry.payload,
    )
