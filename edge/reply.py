"""A reply message, a stream or an error -> an HTTP response: status, headers, body."""

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from protobuf import Message, Registry

from edge.bindings import RESUME, Binding
from edge.codec import Codec
from edge.config import EdgeSettings
from edge.errors import HTTP, Code, Header, HttpError, sendable
from edge.http.negotiation import (
    EVENTS,
    JSON,
    NDJSON,
    PROTOBUF,
    coding_for,
    compress,
)
from edge.http.streams import FRAMINGS, RAW, Framing
from edge.port import CallError
from edge.schema.fields import find_string

NOT_MODIFIED = 304
_NOSNIFF = (b"x-content-type-options", b"nosniff")
_VARY = (b"vary", b"Authorization, Cookie, Accept")
PRIVATE = ((b"cache-control", b"private, no-cache"), _VARY, _NOSNIFF)
SECRET = ((b"cache-control", b"no-store"), _VARY, _NOSNIFF)


@dataclass(slots=True)
class Response:
    """One HTTP response with a whole body."""

    status: int
    headers: list[Header]
    body: bytes


class Replies:
    """How the answers of one binding look."""

    def __init__(self, codec: Codec, binding: Binding, settings: EdgeSettings) -> None:
        self._codec = codec
        self._binding = binding
        self._etag = find_string(binding.resource, "etag")
        self._resume = find_string(binding.reply, RESUME)
        self.status = status_of(binding, settings)
        self.offers = _offers(binding)
        self.headers = PRIVATE
        if binding.method in settings.public_max_age:
            kept = b"public, max-age=%d" % settings.public_max_age[binding.method]
            self.headers = ((b"cache-control", kept), (b"vary", b"Accept"), _NOSNIFF)

    def _sent(self, message: Message) -> Any:
        """Give the part of a reply that `response_body` names."""
        found, resource = self._binding.reply_field, self._binding.resource
        if found is None or resource is None:
            return message
        held = found.of(message)
        if held is None and resource.special and not self._binding.raw_reply:
            return None  # an absent Timestamp is no moment
        return held or resource.type()

    def _content(self, message: Message, part: Any, media: str) -> tuple[bytes, str]:
        """Give what is sent of a reply, and its media type.

        Raises ValueError and the like where the message has no JSON.
        """
        binding = self._binding
        if binding.resource is None and binding.reply_field is not None:
            value = self._codec.to_value(message)
            return orjson.dumps(value.get(binding.reply_field.json_name)), JSON
        if binding.raw_reply:
            told = part.content_type
            return part.data, told if _MEDIA_TYPE.fullmatch(told) else _BYTES
        if part is None:
            return b"null", JSON
        if media == PROTOBUF:
            return part.to_binary(), PROTOBUF
        return self._codec.to_json(part), JSON

    def response(self, message: Message, media: str, method: str) -> Response:
        """Give the response to a call that went well."""
        if self.status == 204:
            return Response(204, [*self.headers], b"")
        part = self._sent(message)
        body, kind = self._content(message, part, media)
        headers = [*self.headers, (b"content-type", kind.encode())]
        tag = _strong(self._etag.last.of(part)) if self._etag else b""
        if tag or method in ("GET", "HEAD"):
            headers.append((b"etag", tag or _weak(body)))
        return Response(self.status, headers, body)

    def framing(self, media: str) -> Framing:
        """Give what stands around the messages of a stream."""
        return RAW if self._binding.raw_reply else FRAMINGS[media]

    def item(self, wire: bytes) -> tuple[bytes, str, str]:
        """Give a stream's message as sent, its resume token and its media type."""
        message: Any = self._binding.reply.type.from_binary(wire)
        text, kind = self._content(message, self._sent(message), JSON)
        token = self._resume.last.of(message) if self._resume else ""
        return text, token or "", kind


def status_of(binding: Binding, settings: EdgeSettings) -> int:
    """Give 204 for a reply without fields, 201 for a creation (`Create` + `User`)."""
    if binding.streams:
        return 200
    if not binding.reply.fields and binding.resource is binding.reply:
        return 204
    name = binding.desc.name
    created = any(
        name.startswith(prefix) and not name[len(prefix) :][:1].islower()
        for prefix in settings.created_prefixes
    )
    return 201 if created else 200


def _offers(binding: Binding) -> tuple[str, ...]:
    """Give the media types of a binding's answers, the default first."""
    if binding.raw_reply:
        return ("*/*",)
    if binding.streams:
        return JSON, NDJSON, EVENTS
    return (JSON,) if binding.resource is None else (JSON, PROTOBUF)


def _strong(version: str | None) -> bytes:
    """Give the strong entity tag of a resource's version (RFC 9110 8.8.3).

    It is the same for every coding and media type, so that If-Match fits whatever
    was read; the cost is that it does not tell a version's representations apart.
    """
    if version and version.isascii() and version.isprintable() and '"' not in version:
        return b'"%s"' % version.encode()
    return b""


def _weak(body: bytes) -> bytes:
    return b'W/"%s"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()


def is_unchanged(if_none_match: bytes, headers: Sequence[Header]) -> bool:
    """Compare If-None-Match with an answer's tag, weakly (RFC 9110 13.1.2)."""
    etag = dict(headers).get(b"etag")
    if etag is None:
        return False
    anything = if_none_match.strip() == b"*"
    return anything or etag.removeprefix(b"W/") in _TAG.findall(if_none_match)


_TAG = re.compile(rb'"[^"]*"')  # without its W/; it may hold a comma


async def pack(response: Response, accept_encoding: bytes | None) -> None:
    """Compress a response in place where the client takes it."""
    if coding := coding_for(accept_encoding):
        response.body = await compress(response.body, coding)
        response.headers.append((b"content-encoding", coding.encode()))


_BYTES = "application/octet-stream"
_TCHARS = r"[\w!#$%&'*+.^`|~-]+"  # RFC 9110 5.6.2
_MEDIA_TYPE = re.compile(
    rf'{_TCHARS}/{_TCHARS}(?: *; *{_TCHARS}=(?:{_TCHARS}|"[^"\\\x00-\x1f\x7f]*"))*',
    re.ASCII,
)


class Failures:
    """Turns what went wrong into responses: one body for every error."""

    def __init__(self, registry: Registry, domain: str) -> None:
        self._registry = registry
        self._domain = domain
        status = registry.message("google.rpc.Status")
        assert status is not None  # noqa: S101  # the codec adds it to every registry
        self._status = status.type

    def response(self, error: Exception, request_id: str, *, match: bool) -> Response:
        """Give the response to an error; `match`: the request had If-Match.

        What nobody foresaw tells nothing but the request's id.
        """
        if isinstance(error, HttpError):
            told = _error(error.code, error.message, error.reason, request_id)
            told["details"] = [*self._info(error.reason), *_violations(error)]
            headers = [*error.headers]
            return _response(error.http, told, headers)
        if isinstance(error, CallError):
            return self._of_call(error, request_id, match=match)
        return _response(
            500, _error(Code.INTERNAL, "internal error", "", request_id), []
        )

    def _info(self, reason: str) -> list[Any]:
        """Give the reason as services tell theirs, where they have a domain."""
        kind = "type.googleapis.com/google.rpc.ErrorInfo"
        told = {"@type": kind, "reason": reason, "domain": self._domain}
        return [told] if self._domain else []

    def _of_call(self, error: CallError, request_id: str, *, match: bool) -> Response:
        """Give the response to a failed call; with If-Match, ABORTED is 412."""
        code = Code(error.code) if 0 < error.code < len(Code) else Code.UNKNOWN
        details = [self._unpacked(packed) for packed in self._details(error.status)]
        reason, headers = "", []
        for detail in details:
            kind = detail["@type"].rpartition("/")[2]
            if kind == "google.rpc.ErrorInfo":
                reason = reason or detail.get("reason", "")
            elif kind == "google.rpc.RetryInfo":
                headers = _retry_after(detail.get("retryDelay", "0s"))
        told = _error(code, error.message, reason, request_id)
        told |= {"code": error.code, "details": details}
        http = 412 if match and code == Code.ABORTED else HTTP[code]
        return _response(http, told, headers)

    def _details(self, status: bytes) -> list[Any]:
        try:
            found: Any = self._status.from_binary(status)
        except ValueError:
            return []
        return list(found.details)

    def _unpacked(self, packed: Any) -> dict[str, Any]:
        """Give an Any as JSON; one of an unknown type stays opaque, in base64."""
        try:
            value = orjson.loads(packed.to_json(registry=self._registry))
            if isinstance(value.get("@type"), str):
                return dict(value)
        except (ValueError, TypeError, RecursionError):
            pass  # an unknown type or bytes that are not of it: told as they are
        value = base64.b64encode(packed.value).decode()
        return {"@type": packed.type_url, "value": value}


def _error(code: Code, message: str, reason: str, request_id: str) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {
        "error": sendable(message) or code.name.replace("_", " ").lower(),
        "errorCode": reason or code.name,
        "timestamp": now.replace("+00:00", "Z"),
        "code": int(code),
        "status": code.name,
        "requestId": request_id,
        "details": [],
    }


def _response(http: int, told: dict[str, Any], headers: list[Header]) -> Response:
    if told["code"] == Code.UNAUTHENTICATED:
        headers.append((b"www-authenticate", b"Bearer"))
    return Response(http, headers, orjson.dumps(told))


def _violations(refused: HttpError) -> list[Any]:
    if not refused.violations:
        return []
    faults = [
        {"field": v.field, "description": v.description, "reason": v.reason}
        for v in refused.violations
    ]
    kind = "type.googleapis.com/google.rpc.BadRequest"
    return [{"@type": kind, "fieldViolations": faults}]


def _retry_after(duration: object) -> list[Header]:
    """Round a ProtoJSON duration up, as Retry-After takes whole seconds only."""
    try:
        seconds = math.ceil(float(str(duration).removesuffix("s")))
    except ValueError:
        return []
    return [(b"retry-after", b"%d" % seconds)] if seconds > 0 else []
