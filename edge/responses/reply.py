"""Reply messages -> HTTP responses and the items of streams."""

import re
from dataclasses import dataclass
from typing import Any

import orjson
from protobuf import Message

from edge.caching import BoundedCache
from edge.config import EdgeSettings
from edge.errors import Header
from edge.http.etags import digest
from edge.http.negotiation import EVENTS, JSON, NDJSON, PROTOBUF
from edge.http.streams import FRAMINGS, RAW, Framing
from edge.routing.bindings import Binding
from edge.schema.codec import Codec

_VARY = (b"vary", b"Authorization, Cookie, Accept")
PRIVATE = ((b"cache-control", b"private, no-cache"), _VARY)
NOT_STORED = ((b"cache-control", b"no-store"), _VARY)
# Makes a browser forget the data of an ended session (ASVS 14.3.1).
_CLEAR_SITE_DATA = ((b"clear-site-data", b'"cache", "storage"'),)
_BYTES = "application/octet-stream"
_MAX_RENDERED_BYTES = 1_024
_TCHARS = r"[\w!#$%&'*+.^`|~-]+"  # RFC 9110 5.6.2
_MEDIA_TYPE = re.compile(
    rf'{_TCHARS}/{_TCHARS}(?: *; *{_TCHARS}=(?:{_TCHARS}|"[^"\\\x00-\x1f\x7f]*"))*',
    re.ASCII,
)


@dataclass(slots=True)
class Response:
    """One HTTP response with its whole body."""

    status: int
    headers: list[Header]
    body: bytes
    version: str = ""  # of the resource in it
    digest: str = ""  # of the body, if it is known
    reason: str = ""  # of the error in it


# By binding, reply and media type.
RenderedReplies = BoundedCache[tuple[Binding, bytes, str], Response]


class Replies:
    """Renders the replies of one binding."""

    def __init__(
        self,
        codec: Codec,
        binding: Binding,
        settings: EdgeSettings,
        rendered: RenderedReplies,
    ) -> None:
        """Prepare; `rendered` keeps replies that are likely to be sent again."""
        self._rendered = rendered
        self._codec = codec
        self._binding = binding
        self._shape = binding.resource or binding.reply
        self.status = status_of(binding, settings)
        self.offers = _offers(binding)
        method = binding.method
        clears = any(method in c.cleared_by for c in settings.cookies)
        self.clearing = _CLEAR_SITE_DATA if clears else ()
        self.has_tokens = any(method in c.reply_fields for c in settings.cookies)
        self.cache_headers = NOT_STORED if self.has_tokens else PRIVATE
        if method in settings.public_max_age:
            caching = b"public, max-age=%d" % settings.public_max_age[method]
            self.cache_headers = ((b"cache-control", caching), (b"vary", b"Accept"))
        self._is_read = binding.verb == "GET" and not self.has_tokens

    def response(self, wire: bytes, media_type: str) -> Response:
        """Return the response for a call that succeeded.

        The same bytes are rendered once: a small resource is often read unchanged.
        """
        key = self._binding, wire, media_type
        response = self._rendered.get(key)
        if response is None:
            message = self._binding.reply.type.from_binary(wire)
            response = self.render(message, media_type)
            if not self._is_read or len(wire) > _MAX_RENDERED_BYTES:
                return response
            response.digest = digest(response.body)
            self._rendered.add(key, response)
        kept = response
        return Response(
            kept.status, [*kept.headers], kept.body, kept.version, digest=kept.digest
        )

    def render(self, message: Message, media_type: str) -> Response:
        """Return the response with a reply's message."""
        if self.status == 204:
            return Response(204, [*self.cache_headers], b"")
        part = self._sent_part(message)
        body, kind = self._content(message, part, media_type)
        headers = [*self.cache_headers, (b"content-type", kind.encode())]
        etag = None if self._is_alternative(message, part) else self._binding.etag
        version = etag.last.of(part) if etag and part is not None else ""
        return Response(self.status, headers, body, version or "")

    def _sent_part(self, message: Message) -> Any:
        """Return the part of a reply that `response_body` names.

        The whole reply is sent if another member of the field's oneof is set: its name
        tells the client what it is.
        """
        field, resource = self._binding.reply_field, self._binding.resource
        if field is None or resource is None:
            return message
        if field.oneof is not None:
            member = getattr(message, field.oneof.local_name)
            if member is not None and member.field != field.name:
                return message
        part = field.of(message)
        if part is None and resource.special and not self._binding.raw_reply:
            return None  # an absent Timestamp is null, not 1970
        return part or resource.type()

    def _is_alternative(self, message: Message, part: Any) -> bool:
        """Return whether the whole reply is sent in place of what it is sent for."""
        return part is message and self._binding.resource is not self._binding.reply

    def _content(
        self, message: Message, part: Any, media_type: str
    ) -> tuple[bytes, str]:
        """Return the body of a reply, and its media type.

        Raises one of BAD_INPUT where the message has no JSON.
        """
        binding = self._binding
        if binding.resource is None and binding.reply_field is not None:
            value = self._codec.to_value(message)
            return orjson.dumps(value.get(binding.reply_field.json_name)), JSON
        if binding.raw_reply:
            kind = part.content_type
            return part.data, kind if _MEDIA_TYPE.fullmatch(kind) else _BYTES
        if part is None:
            return b"null", JSON
        if media_type == PROTOBUF:
            return part.to_binary(), PROTOBUF
        shape = binding.reply if self._is_alternative(message, part) else self._shape
        return self._codec.to_json(part, shape), JSON

    def framing(self, media_type: str) -> Framing:
        """Return the framing of a stream's messages."""
        return RAW if self._binding.raw_reply else FRAMINGS[media_type]

    def item(self, wire: bytes) -> tuple[bytes, str, str]:
        """Return a stream's message as sent, its resume token and its media type."""
        message: Any = self._binding.reply.type.from_binary(wire)
        text, kind = self._content(message, self._sent_part(message), JSON)
        resume = self._binding.reply_token
        token = resume.last.of(message) if resume else ""
        return text, token or "", kind


def status_of(binding: Binding, settings: EdgeSettings) -> int:
    """Return 204 for a reply without fields, 201 for a creation (`Create` + `User`)."""
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
    """Return the media types of a binding's responses, the default first."""
    if binding.raw_reply:
        return ("*/*",)
    if binding.streams:
        return JSON, NDJSON, EVENTS
    return (JSON,) if binding.resource is None else (JSON, PROTOBUF)
