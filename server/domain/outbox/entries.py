"""Entries of the outbox: written with a change, delivered after it, at least once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum

MAIL = "mail."


class EventType(StrEnum):
    """What is to be told: an event of an account, or a mail."""

    USER_CREATED = "user.created"
    USER_UPDATED = "user.updated"
    USER_DELETED = "user.deleted"
    USER_UNDELETED = "user.undeleted"
    USER_ERASED = "user.erased"
    SEEN = "session.opened"
    FOLLOWED = "follow.made"
    UNFOLLOWED = "follow.ended"
    POST_PUBLISHED = "post.published"
    POST_FAN_OUT = "post.spread"  # to the followers not reached yet
    POST_WITHDRAWN = "post.withdrawn"
    WELCOME = "mail.welcome"
    VERIFICATION = "mail.verification"
    PASSWORD_RESET = "mail.password_reset"  # noqa: S105 - a kind's name
    PASSWORD_CHANGED = "mail.password_changed"  # noqa: S105 - a kind's name
    EMAIL_CHANGE = "mail.email_change"
    EMAIL_CHANGE_ASKED = "mail.email_change_asked"
    EMAIL_CHANGED = "mail.email_changed"
    NEW_DEVICE = "mail.new_device"
    FAILED_LOG_INS = "mail.failed_log_ins"
    FOLLOWED_POST = "mail.followed_post"
    NEW_FOLLOWER = "mail.new_follower"
    DIGEST = "mail.digest"


class State(IntEnum):
    """How far an entry is; a dead one waits for an operator."""

    PENDING = 0
    DELIVERED = 1
    DEAD = 2


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What a change writes beside itself; never a token, never a password.

    `user_id` is whom it concerns. `address` is the folded text by which the worker
    looks where no account is known, or an address that is not the account's own.
    """

    kind: EventType
    user_id: int | None = None
    address: str | None = None
    payload: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry on its way; `attempts` counts the one that is being made."""

    id: int
    kind: str
    user_id: int | None
    address: str | None
    payload: Mapping[str, str | int]
    created_at: datetime
    attempts: int

    @property
    def is_mail(self) -> bool:
        """Whether it is a mail; all else are events of accounts."""
        return self.kind.startswith(MAIL)


@dataclass(frozen=True, slots=True)
class DeadEntry:
    """What an operator sees of a dead entry; `last_error` is a class of errors."""

    id: int
    kind: str
    user_id: int | None
    created_at: datetime
    attempts: int
    last_error: str | None
