"""Every way in which the academy refuses, as a tree; no transport's codes.

    AcademyError                 kind, reason, sentence, metadata
    ├── InvalidFields            which fields break which rules
    ├── MalformedRequest
    ├── TokenMissing, TokenInvalid, InvalidCredentials, RefreshTokenInvalid
    ├── MailedTokenInvalid
    ├── AccessDenied, UserRequired
    ├── UserNotFound, SessionNotFound, ServiceKeyNotFound
    ├── ProfileNotFound, ProfileExists, SelfFollow
    ├── PostNotFound, CategoryNotFound, SlugTaken, CategoryInUse
    ├── EtagMismatch, LastAdmin, NextKeyTooNew, ResumeTokenExpired
    ├── EmailTaken, UsernameTaken, RequestIdReused
    ├── RateLimited, Overloaded  when to come again
    ├── StoreUnavailable         a private cause that only the log sees
    ├── ServerStopping
    └── DeadlineExceeded

A `reason` is a value of blatam.error.v1.Reason without its prefix; a test holds
the two together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum, auto
from typing import ClassVar

MOST_TOLD = 20  # violations
LONGEST = 200  # characters of a field's path, or of what is wrong with it


class ErrorKind(Enum):
    """What sort of refusal it is; a transport maps it to its own codes."""

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
    """One field that breaks one rule: its path in JSON names, what would be right."""

    field: str
    description: str
    rule: str


class AcademyError(Exception):
    """A refusal with a public face; `str()` of it is a sentence for people."""

    kind: ClassVar[ErrorKind]
    reason: ClassVar[str]

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.metadata = metadata or {}
        self.retry_after = retry_after
        self.violations: tuple[Violation, ...] = ()


class InvalidFields(AcademyError):
    """Fields that break rules, each named with its rule."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "INVALID_FIELDS"

    def __init__(self, violations: Sequence[Violation]) -> None:
        """Tell the first of them; a status has to fit into 16 KiB of metadata."""
        told = tuple(
            replace(v, field=v.field[:LONGEST], description=v.description[:LONGEST])
            for v in violations[:MOST_TOLD]
        )
        sentences = "; ".join(f"{v.field}: {v.description}" for v in told)
        super().__init__(f"invalid request: {sentences}"[: 2 * LONGEST])
        self.violations = told


class MalformedRequest(AcademyError):
    """Bytes that are no message of the request's type."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "MALFORMED_REQUEST"


class TokenMissing(AcademyError):
    """A call that needs a token came without one."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "TOKEN_MISSING"

    def __init__(self) -> None:
        super().__init__("this call needs an access token: authorization: Bearer ...")


class TokenInvalid(AcademyError):
    """An access token that does not serve; why is for the log alone."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "TOKEN_INVALID"

    def __init__(self, cause: str) -> None:
        super().__init__("the access token is not valid, or no longer")
        self.add_note(cause)


class KeyUnknown(TokenInvalid):
    """A token that names a signing key which this process has not seen."""

    def __init__(self) -> None:
        super().__init__("signed by a key that is not known")


class InvalidCredentials(AcademyError):
    """The one answer to every failed log-in (ASVS 6.3.8)."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "INVALID_CREDENTIALS"

    def __init__(self, account_id: int = 0) -> None:
        super().__init__("no active account has this identifier and password")
        self.account_id = account_id  # for the audit log, never for the caller


class RefreshTokenInvalid(AcademyError):
    """A refresh token that does not serve; why is for the log alone."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "REFRESH_TOKEN_INVALID"

    def __init__(self, cause: str) -> None:
        super().__init__("the refresh token is not valid, or no longer; log in again")
        self.add_note(cause)


class MailedTokenInvalid(AcademyError):
    """A token from a mail that is unknown, used, too old or no longer fitting."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "MAILED_TOKEN_INVALID"

    def __init__(self) -> None:
        super().__init__("the token is not valid, or no longer: ask for a new mail")


class AccessDenied(AcademyError):
    """A known caller who may not do this."""

    kind = ErrorKind.PERMISSION_DENIED
    reason = "ACCESS_DENIED"


class UserRequired(AcademyError):
    """A service called what acts on the caller's own account."""

    kind = ErrorKind.PERMISSION_DENIED
    reason = "USER_REQUIRED"

    def __init__(self) -> None:
        super().__init__(
            "this call acts on the caller's own account: sign in as a user"
        )


class UserNotFound(AcademyError):
    """No such user."""

    kind = ErrorKind.NOT_FOUND
    reason = "USER_NOT_FOUND"

    def __init__(self, user_id: int) -> None:
        super().__init__(f"there is no user {user_id}", metadata={"id": str(user_id)})


class SessionNotFound(AcademyError):
    """The caller has no such session; another's is told from none by nobody."""

    kind = ErrorKind.NOT_FOUND
    reason = "SESSION_NOT_FOUND"

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"there is no session {session_id}", metadata={"id": session_id}
        )


class ServiceKeyNotFound(AcademyError):
    """No such service key."""

    kind = ErrorKind.NOT_FOUND
    reason = "SERVICE_KEY_NOT_FOUND"

    def __init__(self, key_id: int) -> None:
        super().__init__(
            f"there is no service key {key_id}", metadata={"id": str(key_id)}
        )


class ProfileNotFound(AcademyError):
    """No such profile, or a private one; the two are told apart by nobody else."""

    kind = ErrorKind.NOT_FOUND
    reason = "PROFILE_NOT_FOUND"

    def __init__(self, user_id: int) -> None:
        super().__init__(
            f"user {user_id} has no profile", metadata={"id": str(user_id)}
        )


class ProfileExists(AcademyError):
    """The account has a profile."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "PROFILE_EXISTS"

    def __init__(self, user_id: int) -> None:
        super().__init__(
            f"user {user_id} has a profile: change that one",
            metadata={"id": str(user_id)},
        )


class SelfFollow(AcademyError):
    """Somebody would follow themself."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "SELF_FOLLOW"

    def __init__(self) -> None:
        super().__init__("id: nobody follows themself")
        self.violations = (Violation("id", "must not be your own", "id.self"),)


class PostNotFound(AcademyError):
    """No such post, or somebody else's draft; which of them is told by nobody."""

    kind = ErrorKind.NOT_FOUND
    reason = "POST_NOT_FOUND"

    def __init__(self, post_id: int) -> None:
        super().__init__(f"there is no post {post_id}", metadata={"id": str(post_id)})


class CategoryNotFound(AcademyError):
    """No such category."""

    kind = ErrorKind.NOT_FOUND
    reason = "CATEGORY_NOT_FOUND"

    def __init__(self, category_id: int) -> None:
        super().__init__(
            f"there is no category {category_id}", metadata={"id": str(category_id)}
        )


class SlugTaken(AcademyError):
    """Another category has the slug."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "SLUG_TAKEN"

    def __init__(self) -> None:
        super().__init__("another category has this slug")


class CategoryInUse(AcademyError):
    """Posts stand in the category."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "CATEGORY_IN_USE"

    def __init__(self, category_id: int) -> None:
        super().__init__(
            f"posts stand in category {category_id}: move them to another one first",
            metadata={"id": str(category_id)},
        )


class EtagMismatch(AcademyError):
    """The resource has changed since the version that the caller knows."""

    kind = ErrorKind.ABORTED
    reason = "ETAG_MISMATCH"

    def __init__(self, etag: str) -> None:
        super().__init__(
            "this has changed since you read it: read it again and decide anew",
            metadata={"etag": etag},
        )


class LastAdmin(AcademyError):
    """No active admin would be left."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "LAST_ADMIN"

    def __init__(self) -> None:
        super().__init__("this is the last active admin: make another one first")


class NextKeyTooNew(AcademyError):
    """The next signing key is not known to every verifier yet."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "NEXT_KEY_TOO_NEW"

    def __init__(self, retry_after: timedelta) -> None:
        seconds = math.ceil(retry_after.total_seconds())
        super().__init__(
            "not every verifier has seen the next signing key yet: "
            f"come again in {seconds} s, or force it",
            retry_after=retry_after,
        )


class ResumeTokenExpired(AcademyError):
    """A stream cannot be taken up where it broke off."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "RESUME_TOKEN_EXPIRED"

    def __init__(self) -> None:
        super().__init__(
            "what followed this resume token is not kept: read everything anew"
        )


class EmailTaken(AcademyError):
    """Another account has the e-mail address."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "EMAIL_TAKEN"

    def __init__(self) -> None:
        super().__init__("another account has this e-mail address")


class UsernameTaken(AcademyError):
    """Another account has the username, in whatever case."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "USERNAME_TAKEN"

    def __init__(self) -> None:
        super().__init__("another account has this username")


class RequestIdReused(AcademyError):
    """A request id that was used before, for another request."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "REQUEST_ID_REUSED"

    def __init__(self) -> None:
        super().__init__("this request id was used for another request: make a new one")


class RateLimited(AcademyError):
    """Too many calls."""

    kind = ErrorKind.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"

    def __init__(self, limit: int, per: timedelta, retry_after: timedelta) -> None:
        seconds = math.ceil(retry_after.total_seconds())
        super().__init__(
            f"too many calls: at most {limit} in {per.total_seconds():g} s; "
            f"come again in {seconds} s",
            metadata={"limit": str(limit), "per_seconds": f"{per.total_seconds():g}"},
            retry_after=retry_after,
        )


class Overloaded(AcademyError):
    """More work waits than can be done in time."""

    kind = ErrorKind.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"

    def __init__(self, retry_after: timedelta) -> None:
        super().__init__("the service is busy: come again", retry_after=retry_after)


class StoreUnavailable(AcademyError):
    """A store that does not answer; raise it `from` the cause, for the log."""

    kind = ErrorKind.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__(
            "the service cannot reach its data: try again",
            retry_after=timedelta(seconds=1),
        )


class ServerStopping(AcademyError):
    """This process is about to stop, and ends what has no end of its own."""

    kind = ErrorKind.UNAVAILABLE
    reason = "SERVER_STOPPING"

    def __init__(self) -> None:
        super().__init__(
            "this server is about to stop: connect again, after the last resume token",
            retry_after=timedelta(milliseconds=100),
        )


class DeadlineExceeded(AcademyError):
    """The caller's time ran out before the work was done."""

    kind = ErrorKind.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"

    def __init__(self) -> None:
        super().__init__("the call took longer than its deadline allows")
