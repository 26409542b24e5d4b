"""The tree of errors: its root, their kinds, and errors of any request's form."""

from __future__ import annotations

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
        sentences = "; ".join(
            f"{v.field}: {v.description}" if v.field else v.description for v in kept
        )
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


class EtagMismatch(AcademyError):
    """The resource has changed since the caller read it."""

    kind = ErrorKind.ABORTED
    reason = "ETAG_MISMATCH"

    def __init__(self, etag: str) -> None:
        super().__init__(
            "the resource has changed since you read it: read it again and retry",
            metadata={"etag": etag},
        )


class RequestIdReused(AcademyError):
    """The request id was used before, for another request."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "REQUEST_ID_REUSED"

    def __init__(self) -> None:
        super().__init__(
            "this request_id was used for another request: use a new request_id"
        )
