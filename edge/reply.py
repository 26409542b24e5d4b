"""A reply message or an error -> an HTTP response: status, headers, caching, body."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import orjson
from protobuf import Message

from edge.bindings import Binding
from edge.codec import Codec
from edge.config import EdgeSettings
from edge.errors import Header
from edge.manners.negotiation import (
    EVENTS,
    JSON,
    NDJSON,
    PROTOBUF,
    coding_for,
    compress,
)
from edge.schema.shapes import oneof_of

NOT_MODIFIED = 304
_NOSNIFF = (b"x-content-type-options", b"nosniff")
PRIVATE: tuple[Header, ...] = (
    (b"cache-control", b"private, no-cache"),
    (b"vary", b"Authorization, Cookie, Accept"),
    _NOSNIFF,
)
SECRET: tuple[Header, ...] = (
    (b"cache-control", b"no-store"),
    (b"vary", b"Authorization, Cookie, Accept"),
    _NOSNIFF,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a binding's answers before the first call."""

    offers: tuple[str, ...]  # media types, the default first
    status: int
    headers: tuple[Header, ...]
    part: Callable[[Message], Any]  # the part of a reply that is sent


@dataclass(slots=True)
class Response:
    """One HTTP response with a whole body."""

    status: int
    headers: list[Header]
    body: bytes
    packs: bool = True  # may be compressed


def _created(name: str, prefixes: Sequence[str]) -> bool:
    """Tell whether an RPC's name begins with one of the words (`Create` + `User`)."""
    return any(
        name.startswith(prefix) and not name[len(prefix) :][:1].islower()
        for prefix in prefixes
    )


def _part(binding: Binding) -> Callable[[Message], Any]:
    """Give what takes the part out of a reply that `response_body` names."""
    found, resource = binding.reply_field, binding.resource
    if found is None:
        return lambda message: message
    if resource is None or oneof_of(found) is not None:
        return lambda message: message[found] or (resource and resource.type())
    take, empty = attrgetter(found.local_name), resource.type
    return lambda message: take(message) or empty()


def plan(binding: Binding, settings: EdgeSettings) -> Plan:
    """Give a binding's plan: 204 for a reply without fields, 201 for a creation."""
    status = 200
    if not binding.reply.desc.fields and binding.resource is binding.reply:
        status = 204
    elif _created(binding.desc.name, settings.created_prefixes):
        status = 201
    offers: tuple[str, ...] = (JSON,) if binding.resource is None else (JSON, PROTOBUF)
    if binding.streams:
        status, offers = 200, (JSON, NDJSON, EVENTS)
    if binding.raw_reply:
        offers = ("*/*",)
    headers = PRIVATE
    if binding.method in settings.public_max_age:
        seconds = settings.public_max_age[binding.method]
        public = (b"cache-control", b"public, max-age=%d" % seconds)
        headers = (public, (b"vary", b"Accept"), _NOSNIFF)
    return Plan(offers, status, headers, _part(binding))


class Renderer:
    """Makes responses out of reply messages."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def content(
        self, binding: Binding, message: Message, part: Any, media: str
    ) -> tuple[bytes, str]:
        """Give what is sent of a reply, and its media type; `part` is the plan's.

        Raises ValueError and the like where the message has no JSON.
        """
        if binding.resource is None:
            assert binding.reply_field is not None  # noqa: S101  # no field: a message
            value = self._codec.to_value(message)
            return orjson.dumps(value.get(binding.reply_field.json_name)), JSON
        if binding.raw_reply:
            return part.data, part.content_type or "application/octet-stream"
        if media == PROTOBUF:
            return part.to_binary(), PROTOBUF
        return self._codec.to_json(part), JSON

    def response(
        self, binding: Binding, made: Plan, message: Message, media: str, method: str
    ) -> Response:
        """Give the response to a call that went well."""
        if made.status == 204:
            return Response(204, [*made.headers], b"")
        part = made.part(message)
        body, content_type = self.content(binding, message, part, media)
        headers = [*made.headers, (b"content-type", content_type.encode())]
        tag = _strong(part.etag) if binding.has_etag else b""
        if tag or method in ("GET", "HEAD"):
            headers.append((b"etag", tag or _weak(body)))
        return Response(made.status, headers, body)


def _strong(version: str) -> bytes:
    """Give the strong entity tag of a resource's version (RFC 9110 8.8.3).

    It is the same for every coding and media type, so that If-Match fits whatever
    was read; the cost is that it does not tell a version's representations apart.
    """
    if version.isascii() and version.isprintable() and '"' not in version:
        return b'"%s"' % version.encode() if version else b""
    return b""


def _weak(body: bytes) -> bytes:
    return b'W/"%s"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()


def is_unchanged(if_none_match: bytes, headers: Sequence[Header]) -> bool:
    """Compare If-None-Match with an answer's tag, weakly (RFC 9110 13.1.2)."""
    etag = next((value for name, value in headers if name == b"etag"), None)
    if etag is None:
        return False
    held = [tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b",")]
    return if_none_match.strip() == b"*" or etag.removeprefix(b"W/") in held


async def packed(
    response: Response, accept_encoding: bytes | None, smallest: int
) -> None:
    """Compress a response in place where the client takes it and it is worth it."""
    if not response.packs or len(response.body) < smallest:
        return
    response.headers.append((b"vary", b"Accept-Encoding"))
    coding = coding_for(accept_encoding)
    if coding:
        response.body = await compress(response.body, coding)
        response.headers.append((b"content-encoding", coding.encode()))
