"""Errors that the edge returns itself, without a call; failures.py renders them."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from google.rpc.code_pb2 import Code as Code

Header = tuple[bytes, bytes]

# What the native codec raises on input that is not of the type.
BAD_INPUT = (ValueError, TypeError, OverflowError, RecursionError)

# The HTTP status of each gRPC code, by its number (google/rpc/code.proto).
HTTP_STATUS_BY_CODE = (
    *(200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500),
    *(503, 500, 401),
)
MAX_VIOLATIONS = 20
DEADLINE_MESSAGE = (
    "the deadline passed before the call was complete: retry with a longer deadline"
)
_MAX_TEXT_BYTES = 500  # field names and values may be the sender's own


@dataclass(frozen=True, slots=True)
class Violation:
    """One invalid field of a request, by its JSON path, and what it must be."""

    field: str
    description: str
    reason: str = "INVALID_VALUE"


def sendable(text: str) -> str:
    """Return a text that can be sent: bounded, and without lone surrogates."""
    return text.encode(errors="replace")[:_MAX_TEXT_BYTES].decode(errors="replace")


@dataclass(eq=False)
class HttpError(Exception):
    """An error that the edge returns for a request."""

    message: str
    reason: str = "MALFORMED_REQUEST"
    _: KW_ONLY
    http: int = 400
    code: int = Code.INVALID_ARGUMENT
    violations: Sequence[Violation] = ()
    headers: Sequence[Header] = ()

    def __post_init__(self) -> None:
        """Make every text sendable: names may hold lone surrogates."""
        self.message = sendable(self.message)
        self.violations = [
            Violation(sendable(v.field), sendable(v.description), v.reason)
            for v in self.violations[:MAX_VIOLATIONS]
        ]


def invalid(*violations: Violation) -> HttpError:
    """Return the error for a request with invalid fields: 400."""
    message = "; ".join(
        f"{v.field}: {v.description}".removeprefix(": ") for v in violations
    )
    return HttpError(message, "INVALID_FIELDS", violations=violations)


def fault(field: str, description: str, reason: str = "INVALID_VALUE") -> HttpError:
    """Return the error for one invalid field: 400."""
    return invalid(Violation(field, description, reason))


def oneof_conflict(field: str, other: str) -> HttpError:
    """Return the error for two members of one oneof: 400."""
    return fault(field, f"must not be set together with {other}", "ONEOF_CONFLICT")
