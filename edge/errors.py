"""What goes wrong, as REST tells it: one body for every error, status and headers.

Codes and their HTTP statuses are those of google/rpc/code.proto.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from protobuf import Message, Registry

from edge.port import CallError

CODES = (
    ("OK", 200),
    ("CANCELLED", 499),
    ("UNKNOWN", 500),
    ("INVALID_ARGUMENT", 400),
    ("DEADLINE_EXCEEDED", 504),
    ("NOT_FOUND", 404),
    ("ALREADY_EXISTS", 409),
    ("PERMISSION_DENIED", 403),
    ("RESOURCE_EXHAUSTED", 429),
    ("FAILED_PRECONDITION", 400),
    ("ABORTED", 409),
    ("OUT_OF_RANGE", 400),
    ("UNIMPLEMENTED", 501),
    ("INTERNAL", 500),
    ("UNAVAILABLE", 503),
    ("DATA_LOSS", 500),
    ("UNAUTHENTICATED", 401),
)
INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ABORTED = 3, 4, 5, 10
PERMISSION_DENIED, UNIMPLEMENTED, INTERNAL = 7, 12, 13
UNAUTHENTICATED = 16
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault of a request: a field by its JSON path, and what it should be."""

    field: str
    description: str
    reason: str = "INVALID_VALUE"


class Refused(Exception):
    """A request that the edge answers itself, without a call."""

    def __init__(
        self,
        message: str,
        reason: str = "MALFORMED_REQUEST",
        *,
        http: int = 400,
        code: int = INVALID_ARGUMENT,
        violations: Sequence[Violation] = (),
        headers: Sequence[Header] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.http = http
        self.code = code
        self.violations = violations
        self.headers = headers


def invalid(*violations: Violation) -> Refused:
    """Give the refusal of a request whose fields are at fault: 400."""
    told = "; ".join(
        f"{v.field}: {v.description}" if v.field else v.description for v in violations
    )
    return Refused(told, "INVALID_FIELDS", violations=violations)


@dataclass(slots=True)
class ErrorReply:
    """An error on its way out: the HTTP status, the body's values, the headers."""

    http: int
    body: dict[str, Any]
    headers: list[Header] = field(default_factory=list)

    @property
    def json(self) -> bytes:
        """The body as it is sent."""
        return orjson.dumps(self.body)


def _reply(
    http: int, code: int, message: str, reason: str, request_id: str, details: list[Any]
) -> ErrorReply:
    name = CODES[code][0] if 0 < code < len(CODES) else "UNKNOWN"
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    body = {
        "error": message or name.replace("_", " ").lower(),
        "errorCode": reason or name,
        "timestamp": now.replace("+00:00", "Z"),
        "code": code,
        "status": name,
        "requestId": request_id,
        "details": details,
    }
    headers = [(b"www-authenticate", b"Bearer")] if code == UNAUTHENTICATED else []
    return ErrorReply(http, body, headers)


def of_refusal(refused: Refused, request_id: str) -> ErrorReply:
    """Give the reply to a request that the edge refused."""
    details = []
    if refused.violations:
        faults = [
            {"field": v.field, "description": v.description, "reason": v.reason}
            for v in refused.violations
        ]
        details.append({"@type": _BAD_REQUEST, "fieldViolations": faults})
    reply = _reply(
        refused.http, refused.code, refused.message, refused.reason, request_id, details
    )
    reply.headers.extend(refused.headers)
    return reply


def internal(request_id: str) -> ErrorReply:
    """Give the reply to what nobody foresaw: it tells nothing but the request's id."""
    return _reply(500, INTERNAL, "internal error", "", request_id, [])


class StatusReader:
    """Turns calls that failed into replies, with their google.rpc details."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        status = registry.message("google.rpc.Status")
        assert status is not None  # noqa: S101  # the codec adds it to every registry
        self._status = status.type

    def reply(self, error: CallError, request_id: str, *, if_match: bool) -> ErrorReply:
        """Give the reply to a failed call; with If-Match, ABORTED is 412 (RFC 9110)."""
        known = 0 < error.code < len(CODES)
        http = CODES[error.code][1] if known else 500
        if if_match and error.code == ABORTED:
            http = 412
        details, reason, retry_after = self._details(error.status)
        reply = _reply(http, error.code, error.message, reason, request_id, details)
        if retry_after:
            reply.headers.append((b"retry-after", b"%d" % retry_after))
        return reply

    def _details(self, status: bytes) -> tuple[list[Any], str, int]:
        """Give the details as JSON values, ErrorInfo's reason, RetryInfo's seconds."""
        details: list[Any] = []
        reason, retry_after = "", 0
        try:
            anys: list[Any] = getattr(self._status.from_binary(status), "details", [])
        except ValueError:
            return details, reason, retry_after
        for packed in anys:
            value = self._unpacked(packed)
            details.append(value)
            kind = value["@type"].rpartition("/")[2]
            if kind == "google.rpc.ErrorInfo":
                reason = reason or value.get("reason", "")
            elif kind == "google.rpc.RetryInfo":
                retry_after = _whole_seconds(value.get("retryDelay", "0s"))
        return details, reason, retry_after

    def _unpacked(self, packed: Message) -> dict[str, Any]:
        """Give an Any as JSON; one of an unknown type stays opaque, in base64."""
        try:
            value = orjson.loads(packed.to_json(registry=self._registry))
            if isinstance(value.get("@type"), str):
                return dict(value)
        except (ValueError, TypeError, RecursionError):
            pass  # an unknown type or bytes that are not of it: told as they are
        raw: bytes = getattr(packed, "value", b"")
        url: str = getattr(packed, "type_url", "")
        return {"@type": url, "value": base64.b64encode(raw).decode()}


def _whole_seconds(duration: object) -> int:
    """Round a ProtoJSON duration up, as Retry-After takes whole seconds only."""
    text = str(duration).removesuffix("s")
    try:
        return max(0, -int(-float(text) // 1))
    except ValueError:
        return 0
