"""Errors -> HTTP responses: every error has the same body."""

import base64
import math
import re
from datetime import UTC, datetime
from typing import Any

import orjson
from protobuf import Registry

from edge.config import EdgeSettings
from edge.errors import HTTP_STATUS_BY_CODE, Code, Header, HttpError, sendable
from edge.port import CallError
from edge.responses.reply import Response

_TYPE_URL = "type.googleapis.com/google.rpc."
_RETRYABLE = (429, 503)
_DURATION = re.compile(r"[0-9]+(?:\.[0-9]+)?s")  # ProtoJSON, not negative
_PARAMETER = re.compile(r"[\w.:/ -]+", re.ASCII)  # needs no escapes in quotes
_LAST_CODE = len(HTTP_STATUS_BY_CODE) - 1


class ErrorRenderer:
    """Renders errors as responses."""

    def __init__(self, registry: Registry, settings: EdgeSettings) -> None:
        self._registry = registry
        self._domain = settings.error_domain
        self._retry_after = settings.retry_after
        self._step_up_reason = settings.step_up_reason
        status = registry.message("google.rpc.Status")
        assert status is not None  # noqa: S101  # the codec adds it to every registry
        self._status = status.type

    def response(self, error: Exception, request_id: str, *, match: bool) -> Response:
        """Return the response to an error; `match`: the request had If-Match.

        An unexpected error reveals nothing but the request id.
        """
        if isinstance(error, HttpError):
            body = error_body(error.code, error.message, error.reason, request_id)
            body["details"] = [*self._info(error.reason), *_violations(error)]
            return self._response(error.http, body, [*error.headers])
        if isinstance(error, CallError):
            return self._of_call(error, request_id, match=match)
        body = error_body(Code.INTERNAL, "internal error", "", request_id)
        return self._response(500, body, [])

    def _info(self, reason: str) -> list[Any]:
        """Return the reason as a service writes it, if the settings name a domain."""
        kind = f"{_TYPE_URL}ErrorInfo"
        info = {"@type": kind, "reason": reason, "domain": self._domain}
        return [info] if self._domain else []

    def _of_call(self, error: CallError, request_id: str, *, match: bool) -> Response:
        """Return the response to a failed call; with If-Match, ABORTED is 412."""
        code = error.code if 0 < error.code <= _LAST_CODE else Code.UNKNOWN
        details = [self._unpacked(packed) for packed in self._details(error.status)]
        reason, headers = "", []
        for detail in details:
            kind = detail["@type"].rpartition("/")[2]
            if kind == "google.rpc.ErrorInfo":
                reason = reason or detail.get("reason", "")
                if reason and reason == self._step_up_reason:
                    headers = _step_up(detail.get("metadata", {}))
            elif kind == "google.rpc.RetryInfo":
                headers = _retry_after(detail.get("retryDelay", "0s"))
        body = error_body(code, error.message, reason, request_id)
        body |= {"code": error.code, "details": details}
        http = 412 if match and code == Code.ABORTED else HTTP_STATUS_BY_CODE[code]
        return self._response(http, body, headers)

    def _response(
        self, http: int, body: dict[str, Any], headers: list[Header]
    ) -> Response:
        names = {name for name, _ in headers}
        if body["code"] == Code.UNAUTHENTICATED and b"www-authenticate" not in names:
            headers.append((b"www-authenticate", b"Bearer"))
        if http in _RETRYABLE and b"retry-after" not in names:
            headers.append((b"retry-after", b"%d" % self._retry_after))
        return Response(http, headers, orjson.dumps(body), reason=body["errorCode"])

    def _details(self, status: bytes) -> list[Any]:
        try:
            parsed: Any = self._status.from_binary(status)
        except ValueError:
            return []
        return list(parsed.details)

    def _unpacked(self, packed: Any) -> dict[str, Any]:
        """Return an Any as JSON; one of an unknown type stays in base64."""
        try:
            value = orjson.loads(packed.to_json(registry=self._registry))
            if isinstance(value.get("@type"), str):
                return dict(value)
        except (ValueError, TypeError, RecursionError):
            pass  # an unknown type, or bytes that are not of it
        value = base64.b64encode(packed.value).decode()
        return {"@type": packed.type_url, "value": value}


def error_body(code: int, message: str, reason: str, request_id: str) -> dict[str, Any]:
    """Return the JSON of an error without details."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    name = Code.Name(code)
    return {
        "error": sendable(message) or name.replace("_", " ").lower(),
        "errorCode": reason or name,
        "timestamp": now.replace("+00:00", "Z"),
        "code": code,
        "status": name,
        "requestId": request_id,
        "details": [],
    }


def _violations(error: HttpError) -> list[Any]:
    if not error.violations:
        return []
    violations = [
        {"field": v.field, "description": v.description, "reason": v.reason}
        for v in error.violations
    ]
    return [{"@type": f"{_TYPE_URL}BadRequest", "fieldViolations": violations}]


def _step_up(metadata: dict[str, str]) -> list[Header]:
    """Return a challenge that says which log-in a call needs (RFC 9470 3)."""
    parameters = {"error": "insufficient_user_authentication"} | {
        name: metadata[name] for name in ("acr_values", "max_age") if name in metadata
    }
    written = ", ".join(
        f'{name}="{value}"'
        for name, value in parameters.items()
        if _PARAMETER.fullmatch(value)
    )
    return [(b"www-authenticate", f"Bearer {written}".encode())]


def _retry_after(duration: object) -> list[Header]:
    """Return a Retry-After of a ProtoJSON duration, rounded up to whole seconds."""
    if not isinstance(duration, str) or not _DURATION.fullmatch(duration):
        return []
    seconds = math.ceil(float(duration.removesuffix("s")))
    return [(b"retry-after", b"%d" % seconds)] if seconds > 0 else []
