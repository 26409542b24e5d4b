"""Every error of the service, as a tree, independent of transports.

    AcademyError                 kind, reason, message, metadata
    ├── InvalidFields            the fields and the rules that they break
    ├── MalformedRequest
    ├── TokenMissing, TokenInvalid, InvalidCredentials, RefreshTokenInvalid
    ├── MailedTokenInvalid
    ├── AccessDenied, UserRequired
    ├── UserNotFound, SessionNotFound, ServiceKeyNotFound
    ├── ProfileNotFound, ProfileExists, SelfFollow
    ├── PostNotFound, CategoryNotFound, SlugTaken, CategoryInUse
    ├── EtagMismatch, LastAdmin, NextKeyTooNew, ResumeTokenExpired
    ├── EmailTaken, UsernameTaken, RequestIdReused
    ├── RateLimited, Overloaded  when to retry
    ├── StoreUnavailable         a private cause, in the log only
    ├── ServerStopping
    └── DeadlineExceeded

A `reason` is a value of blatam.error.v1.Reason without its prefix (a test compares
the two).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum, auto
from typing import ClassVar

# gRPC clients accept 8 KiB of metadata and refuse more as RESOURCE_EXHAUSTED, at random
# up to 16 KiB. A status travels there with its message, which counts again and with
# three bytes for each byte that is not ASCII.
MAX_VIOLATIONS = 20
MAX_VIOLATIONS_SIZE = 5 * 1024  # bytes
MAX_MESSAGE_SIZE = 400  # bytes
MAX_TEXT_SIZE = 200  # bytes of a field's path, or of a violation's description
_VIOLATION_OVERHEAD = 16  # bytes of tags and lengths around a violation's texts


class ErrorKind(Enum):
    """The kind of an error. Each transport maps it to its own codes."""

    INVALID_ARGUMENT = auto()
    UNAUTHENTICATED = auto()
    PERMISSION_DENIED = auto()
    NOT_FOUND = auto()
    ALREADY_EXISTS = auto()
    ABORTED = auto()
    FAILED_PRECONDITION = auto()
    RESOURCE_EXHAUSTED = auto()
    UNAVAILABLE = auto()
    DEADLINE_EXCEEDED = auto()


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that breaks a rule: its path in JSON names and what the rule requires."""

    field: str
    description: str
    rule: str


class AcademyError(Exception):
    """An error that callers see. `str()` returns its message."""

    kind: ClassVar[ErrorKind]
    reason: ClassVar[str]

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(_cut(message, MAX_MESSAGE_SIZE))
        self.metadata = metadata or {}
        self.retry_after = retry_after
        self.violations: tuple[Violation, ...] = ()


class InvalidFields(AcademyError):
    """Fields that break rules, each with its rule."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "INVALID_FIELDS"

    def __init__(self, violations: Sequence[Violation]) -> None:
        """Keep the first violations, as many as fit into a status."""
        kept = tuple(_within_size(violations[:MAX_VIOLATIONS]))
        sentences = "; ".join(f"{v.field}: {v.description}" for v in kept)
        super().__init__(f"invalid request: {sentences}")
        self.violations = kept


def _within_size(violations: Sequence[Violation]) -> Iterator[Violation]:
    size = 0
    for violation in violations:
        field = _cut(violation.field, MAX_TEXT_SIZE)
        description = _cut(violation.description, MAX_TEXT_SIZE)
        texts = (field, description, violation.rule)
        size += _VIOLATION_OVERHEAD + sum(len(text.encode()) for text in texts)
        if size > MAX_VIOLATIONS_SIZE:
            return
        yield replace(violation, field=field, description=description)


def _cut(text: str, size: int) -> str:
    """Return the text, shortened to `size` bytes of UTF-8."""
    return text.encode()[:size].decode(errors="ignore")


class MalformedRequest(AcademyError):
    """The bytes are not a message of the request's type."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "MALFORMED_REQUEST"


class TokenMissing(AcademyError):
    """The call needs an access token and has none."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "TOKEN_MISSING"

    def __init__(self) -> None:
        super().__init__(
            "this call needs an access token: send authorization: Bearer <token>"
        )


class TokenInvalid(AcademyError):
    """The access token is not accepted. The cause is in the log only."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "TOKEN_INVALID"

    def __init__(
        self,
        cause: str,
        message: str = (
            "the access token is invalid or expired: refresh it or log in again"
        ),
    ) -> None:
        super().__init__(message)
        self.add_note(cause)


class KeyUnknown(TokenInvalid):
    """The token names a signing key that this process does not know."""

    def __init__(self) -> None:
        super().__init__("unknown signing key")


class InvalidCredentials(AcademyError):
    """The only answer to a failed log-in, whatever the cause (ASVS 6.3.8)."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "INVALID_CREDENTIALS"

    def __init__(self, account_id: int = 0) -> None:
        super().__init__("no active account has this identifier and password")
        self.account_id = account_id  # for the audit log, never for the caller


class RefreshTokenInvalid(AcademyError):
    """The refresh token is not accepted. The cause is in the log only."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "REFRESH_TOKEN_INVALID"

    def __init__(self, cause: str) -> None:
        super().__init__("the refresh token is invalid or expired: log in again")
        self.add_note(cause)


class MailedTokenInvalid(AcademyError):
    """A token from an e-mail that is unknown, used, expired or superseded."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "MAILED_TOKEN_INVALID"

    def __init__(self) -> None:
        super().__init__("the token is invalid or expired: request a new e-mail")


class AccessDenied(AcademyError):
    """The caller is authenticated and has no permission."""

    kind = ErrorKind.PERMISSION_DENIED
    reason = "ACCESS_DENIED"


class UserRequired(AcademyError):
    """A service key called an RPC that acts on the caller's own account."""

    kind = ErrorKind.PERMISSION_DENIED
    reason = "USER_REQUIRED"

    def __init__(self) -> None:
        super().__init__("this call acts on the caller's own account: log in as a user")


class UserNotFound(AcademyError):
    """The user does not exist."""

    kind = ErrorKind.NOT_FOUND
    reason = "USER_NOT_FOUND"

    def __init__(self, user_id: int) -> None:
        super().__init__(f"user {user_id} not found", metadata={"id": str(user_id)})


class SessionNotFound(AcademyError):
    """The caller has no such session. Another user's session gets the same answer."""

    kind = ErrorKind.NOT_FOUND
    reason = "SESSION_NOT_FOUND"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id} not found", metadata={"id": session_id})


class ServiceKeyNotFound(AcademyError):
    """The service key does not exist."""

    kind = ErrorKind.NOT_FOUND
    reason = "SERVICE_KEY_NOT_FOUND"

    def __init__(self, key_id: int) -> None:
        super().__init__(
            f"service key {key_id} not found", metadata={"id": str(key_id)}
        )


class ProfileNotFound(AcademyError):
    """The profile does not exist, or is private: both get the same answer."""

    kind = ErrorKind.NOT_FOUND
    reason = "PROFILE_NOT_FOUND"

    def __init__(self, user_id: int) -> None:
        super().__init__(
            f"user {user_id} has no profile", metadata={"id": str(user_id)}
        )


class ProfileExists(AcademyError):
    """The account already has a profile."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "PROFILE_EXISTS"

    def __init__(self, user_id: int) -> None:
        super().__init__(
            f"user {user_id} already has a profile: update it",
            metadata={"id": str(user_id)},
        )


class SelfFollow(AcademyError):
    """The caller tried to follow themselves."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "SELF_FOLLOW"

    def __init__(self) -> None:
        super().__init__("id: you cannot follow yourself")
        self.violations = (Violation("id", "must not be your own id", "id.self"),)


class PostNotFound(AcademyError):
    """The post does not exist, or is another author's draft: the same answer."""

    kind = ErrorKind.NOT_FOUND
    reason = "POST_NOT_FOUND"

    def __init__(self, post_id: int) -> None:
        super().__init__(f"post {post_id} not found", metadata={"id": str(post_id)})


class CategoryNotFound(AcademyError):
    """The category does not exist."""

    kind = ErrorKind.NOT_FOUND
    reason = "CATEGORY_NOT_FOUND"

    def __init__(self, category_id: int) -> None:
        super().__init__(
            f"category {category_id} not found", metadata={"id": str(category_id)}
        )


class SlugTaken(AcademyError):
    """Another category has the slug."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "SLUG_TAKEN"

    def __init__(self) -> None:
        super().__init__("another category has this slug")


class CategoryInUse(AcademyError):
    """The category contains posts."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "CATEGORY_IN_USE"

    def __init__(self, category_id: int) -> None:
        super().__init__(
            f"category {category_id} contains posts: move them to another one first",
            metadata={"id": str(category_id)},
        )


class EtagMismatch(AcademyError):
    """The resource has changed since the caller read it."""

    kind = ErrorKind.ABORTED
    reason = "ETAG_MISMATCH"

    def __init__(self, etag: str) -> None:
        super().__init__(
            "the resource has changed since you read it: re-read it and retry",
            metadata={"etag": etag},
        )


class LastAdmin(AcademyError):
    """The change would leave no active admin."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "LAST_ADMIN"

    def __init__(self) -> None:
        super().__init__(
            "this is the last active admin: make another user an admin first"
        )


class NextKeyTooNew(AcademyError):
    """The next signing key is not yet known to every verifier."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "NEXT_KEY_TOO_NEW"

    def __init__(self, retry_after: timedelta) -> None:
        seconds = math.ceil(retry_after.total_seconds())
        super().__init__(
            "not every verifier has read the next signing key yet: "
            f"retry in {seconds} s, or set force",
            retry_after=retry_after,
        )


class ResumeTokenExpired(AcademyError):
    """The changes after this resume token are no longer stored."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "RESUME_TOKEN_EXPIRED"

    def __init__(self) -> None:
        super().__init__(
            "the changes after this resume token are no longer stored: "
            "start again without resume_token"
        )


class EmailTaken(AcademyError):
    """Another account has the e-mail address."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "EMAIL_TAKEN"

    def __init__(self) -> None:
        super().__init__("another account has this e-mail address")


class UsernameTaken(AcademyError):
    """Another account has the username, ignoring case."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "USERNAME_TAKEN"

    def __init__(self) -> None:
        super().__init__("another account has this username")


class RequestIdReused(AcademyError):
    """The request id was used before, for another request."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "REQUEST_ID_REUSED"

    def __init__(self) -> None:
        super().__init__("this request_id was used for another request: use a new one")


class RateLimited(AcademyError):
    """The caller exceeded a rate limit."""

    kind = ErrorKind.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"

    def __init__(self, limit: int, per: timedelta, retry_after: timedelta) -> None:
        seconds = math.ceil(retry_after.total_seconds())
        super().__init__(
            f"too many calls: at most {limit} in {per.total_seconds():g} s; "
            f"retry in {seconds} s",
            metadata={"limit": str(limit), "per_seconds": f"{per.total_seconds():g}"},
            retry_after=retry_after,
        )


class Overloaded(AcademyError):
    """The queue is too long to answer in time."""

    kind = ErrorKind.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"

    def __init__(self, retry_after: timedelta) -> None:
        seconds = math.ceil(retry_after.total_seconds())
        super().__init__(
            f"the service is busy: retry in {seconds} s", retry_after=retry_after
        )


class StoreUnavailable(AcademyError):
    """A store does not answer. Raise it `from` the cause, for the log."""

    kind = ErrorKind.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__(
            "the database does not respond: retry in 1 s",
            retry_after=timedelta(seconds=1),
        )


class ServerStopping(AcademyError):
    """This process is stopping and ends its streams."""

    kind = ErrorKind.UNAVAILABLE
    reason = "SERVER_STOPPING"

    def __init__(self) -> None:
        super().__init__(
            "this server is stopping: reconnect with the last resume_token",
            retry_after=timedelta(milliseconds=100),
        )


class DeadlineExceeded(AcademyError):
    """The deadline passed before the call was complete."""

    kind = ErrorKind.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"

    def __init__(self) -> None:
        super().__init__("deadline exceeded")
