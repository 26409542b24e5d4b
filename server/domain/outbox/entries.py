"""Outbox entries: written with a change, delivered after it, at least once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum

MAIL = "mail."


class EventType(StrEnum):
    """The type of an entry: an event, or an e-mail."""

    USER_CREATED = "user.created"
    USER_UPDATED = "user.updated"
    USER_DELETED = "user.deleted"
    USER_UNDELETED = "user.undeleted"
    USER_ERASED = "user.erased"
    SESSION_OPENED = "session.opened"
    FOLLOWED = "follow.made"
    UNFOLLOWED = "follow.ended"
    POST_PUBLISHED = "post.published"
    POST_FAN_OUT = "post.spread"  # to the followers not yet notified
    POST_WITHDRAWN = "post.withdrawn"
    WELCOME = "mail.welcome"
    VERIFICATION = "mail.verification"
    PASSWORD_RESET = "mail.password_reset"  # noqa: S105 - a type's name
    LOGIN_CODE = "mail.login_code"
    PASSWORD_CHANGED = "mail.password_changed"  # noqa: S105 - a type's name
    EMAIL_CHANGE = "mail.email_change"
    EMAIL_CHANGE_ASKED = "mail.email_change_asked"
    EMAIL_CHANGED = "mail.email_changed"
    NEW_DEVICE = "mail.new_device"
    FAILED_LOG_INS = "mail.failed_log_ins"
    FACTOR_ADDED = "mail.factor_added"
    FACTOR_REMOVED = "mail.factor_removed"
    PASSKEY_ADDED = "mail.passkey_added"
    PASSKEY_COPIED = "mail.passkey_copied"
    RECOVERY_CODE_USED = "mail.recovery_code_used"
    RECOVERY_CODES_REPLACED = "mail.recovery_codes_replaced"
    IDENTITY_LINKED = "mail.identity_linked"
    IDENTITY_UNLINKED = "mail.identity_unlinked"
    IMPERSONATED = "mail.impersonated"
    FOLLOWED_POST = "mail.followed_post"
    NEW_FOLLOWER = "mail.new_follower"
    DIGEST = "mail.digest"


class Queue(IntEnum):
    """The queues of entries: none waits for another. Notifications can be very many."""

    EVENTS = 0
    ACCOUNT_MAILS = 1
    NOTIFICATION_MAILS = 2


NOTIFICATION_MAILS = (
    EventType.FOLLOWED_POST,
    EventType.NEW_FOLLOWER,
    EventType.DIGEST,
)


class EntryState(IntEnum):
    """The state of an entry; DEAD is a dead letter, which waits for an operator."""

    PENDING = 0
    DELIVERED = 1
    DEAD = 2


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry to write with a change; it never holds a token or a password.

    `user_id` is the account that it is about. `address` is the normalized identifier by
    which the worker looks up an account, or an address that is not the account's own.
    """

    kind: EventType
    user_id: int | None = None
    address: str | None = None
    payload: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """A claimed entry; `attempts` includes the present one."""

    id: int
    kind: str
    user_id: int | None
    address: str | None
    payload: Mapping[str, str | int]
    created_at: datetime
    attempts: int

    @property
    def is_mail(self) -> bool:
        """Whether it is an e-mail; otherwise it is an event."""
        return self.kind.startswith(MAIL)

    @property
    def queue(self) -> Queue:
        """The queue that it waits in."""
        if not self.is_mail:
            return Queue.EVENTS
        if self.kind in NOTIFICATION_MAILS:
            return Queue.NOTIFICATION_MAILS
        return Queue.ACCOUNT_MAILS

    @property
    def order_key(self) -> object:
        """Entries with equal keys are delivered in their order; None: in any order."""
        if self.queue is Queue.NOTIFICATION_MAILS:
            return None
        return self.queue, self.user_id or self.address


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as operators see it; `last_error` is the class of an exception."""

    id: int
    kind: str
    user_id: int | None
    created_at: datetime
    attempts: int
    last_error: str | None
