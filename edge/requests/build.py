"""Builds the request message from path, query, headers, cookies and body."""

from collections.abc import Sequence
from typing import Any

import orjson
from protobuf import Message

from edge.errors import BAD_INPUT, HttpError, fault
from edge.http.negotiation import JSON, PROTOBUF, body_kind
from edge.requests.masks import MaskDeriver
from edge.requests.merging import Body, Equal, merge_values, refuse_conflict
from edge.requests.parameters import (
    FieldValue,
    Headers,
    header_values,
    path_values,
    query_values,
)
from edge.routing.bindings import Binding
from edge.schema.codec import Codec
from edge.schema.faults import strict_tree
from edge.schema.fields import Shape


class RequestBuilder:
    """Builds the bytes of request messages."""

    def __init__(self, codec: Codec, resume_field: str) -> None:
        self._codec = codec
        self._masks = MaskDeriver(codec.registry)
        self._resume_field = resume_field

    def build(
        self,
        binding: Binding,
        segments: list[str],
        query: bytes,
        headers: Headers,
        cookies: Sequence[FieldValue],
        body: bytes,
    ) -> bytes:
        """Return the request of any call; raises HttpError naming the invalid field.

        Headers may repeat a value of the other sources, cookies may not. The two
        parts of the result are concatenated: on the wire that merges them.
        """
        named = [*header_values(binding, headers)] if binding.headers else []
        read = self._read(binding, headers.get(b"content-type"), body) if body else None
        values: Sequence[FieldValue] = [*path_values(binding, segments)]
        if query or named or cookies:
            queried = query_values(binding, query)
            equal = self._equal(binding)
            values = merge_values(
                values, queried, named, cookies, equal, self._resume_field
            )
        if not (values or read):
            return b""
        bound = self._message(binding.request, values)
        if read is None:
            return bound.to_binary()
        exclusive = {parameter.names for parameter, _ in cookies}
        for parameter, _ in values:
            refuse_conflict(parameter, read, bound, parameter.names in exclusive)
        self._masks.derive(binding, read[1], bound)
        return read[0].to_binary() + bound.to_binary()

    def _equal(self, binding: Binding) -> Equal:
        def equal(value: FieldValue, other: FieldValue) -> bool:
            if value[1] == other[1]:
                return True
            first = self._message(binding.request, [value])
            second = self._message(binding.request, [other])
            return bool(first == second)  # 1 and 1.0, one moment in two time zones

        return equal

    def _message(self, shape: Shape, values: Sequence[FieldValue]) -> Message:
        """Return the message of these values; raises HttpError for an invalid one."""
        try:
            return self._codec.parsed(shape, _document(values))
        except BAD_INPUT:
            pass  # parsing each alone finds the invalid one
        for value in values:
            try:
                self._codec.parsed(shape, _document([value]))
            except BAD_INPUT:
                parameter, _ = value
                raise fault(parameter.path, parameter.last.kind.requirement) from None
        raise HttpError("each parameter is valid, but their combination is not")

    def _read(self, binding: Binding, content_type: bytes | None, body: bytes) -> Body:
        """Return the request message of a body, and its JSON values."""
        shape = binding.body
        if shape is not None and binding.raw_body:
            kind = (content_type or b"application/octet-stream").decode("latin-1")
            message = shape.type()
            message[shape.named["content_type"].desc] = kind
            message[shape.named["data"].desc] = body
            return _wrapped(binding, message, {})
        offers = (JSON, PROTOBUF) if shape else (JSON,)
        if body_kind(content_type, offers) == JSON:
            return self._read_json(binding, body)
        assert shape is not None  # noqa: S101  # protobuf is offered for messages only
        try:
            message = shape.type.from_binary(body)
        except BAD_INPUT:
            raise HttpError(f"the body is not a valid {shape.name} message") from None
        return _wrapped(binding, message, _tree(message, shape))

    def _read_json(self, binding: Binding, body: bytes) -> Body:
        field = binding.body_field
        if field is None:
            return self._codec.read(body, binding.request)
        # Parsed alone first, so that it cannot close the object around it.
        tree = strict_tree(body, field.json_name)
        if tree is None and not field.takes_null:
            text = binding.body.kind.requirement if binding.body else "must not be null"
            raise fault(field.json_name, text)
        wrapped = b'{"%s":%s}' % (field.json_name.encode(), body)
        return self._codec.read(wrapped, binding.request, {field.json_name: tree})


def _document(values: Sequence[FieldValue]) -> bytes:
    """Return the JSON of a request that has these values only."""
    document: dict[str, Any] = {}
    for parameter, value in values:
        parent = document
        for name in parameter.names[:-1]:
            parent = parent.setdefault(name, {})
        parent[parameter.names[-1]] = value
    return orjson.dumps(document)


def _wrapped(binding: Binding, message: Message, tree: Any) -> Body:
    field = binding.body_field
    if field is None:
        return message, tree
    request = binding.request.type()
    request[field.desc] = message
    return request, {field.json_name: tree}


def _tree(message: Any, shape: Shape) -> dict[str, Any]:
    """Return the fields that are set in a message as a tree, by JSON names."""
    return {
        field.json_name: _tree(field.of(message), field.nested)
        if field.nested and not field.many
        else field.of(message)
        for field in shape.fields
        if field.desc in message
    }
