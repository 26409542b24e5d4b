"""What the edge refuses itself, without a call. How it is told stands in reply.py."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from enum import IntEnum

Header = tuple[bytes, bytes]

# What the native codec raises on input that is not of the type.
BAD_INPUT = (ValueError, TypeError, OverflowError, RecursionError)


Code = IntEnum(
    "Code",
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS "
    "PERMISSION_DENIED RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE "
    "UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED",
    start=0,
)
# The HTTP status of each code, as google/rpc/code.proto says.
HTTP = (
    *(200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500),
    *(503, 500, 401),
)


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault of a request: a field by its JSON path, and what it should be."""

    field: str
    description: str
    reason: str = "INVALID_VALUE"


MOST_TOLD = 20  # violations
_LONGEST = 500  # of a text that is told: field names may be the sender's


def sendable(text: str) -> str:
    """Give a text that can be sent: short, and without lone surrogates."""
    return text.encode(errors="replace")[:_LONGEST].decode(errors="replace")


@dataclass(eq=False)
class HttpError(Exception):
    """A request that the edge answers itself."""

    message: str
    reason: str = "MALFORMED_REQUEST"
    _: KW_ONLY
    http: int = 400
    code: Code = Code.INVALID_ARGUMENT
    violations: Sequence[Violation] = ()
    headers: Sequence[Header] = ()

    def __post_init__(self) -> None:
        """Make every text one that can be sent: names may hold lone surrogates."""
        self.message = sendable(self.message)
        self.violations = [
            Violation(sendable(v.field), sendable(v.description), v.reason)
            for v in self.violations[:MOST_TOLD]
        ]


def invalid(*violations: Violation) -> HttpError:
    """Give the refusal of a request whose fields are at fault: 400."""
    told = "; ".join(
        f"{v.field}: {v.description}".removeprefix(": ") for v in violations
    )
    return HttpError(told, "INVALID_FIELDS", violations=violations)


def fault(field: str, told: str, reason: str = "INVALID_VALUE") -> HttpError:
    """Give the refusal of one field: 400."""
    return invalid(Violation(field, told, reason))


def two_of_one(field: str, other: str) -> HttpError:
    """Give the refusal of two members of one oneof."""
    return fault(field, f"only one of it and {other} may be given", "ONEOF_CONFLICT")
