"""Path, query, headers and body -> the request message; conflicts are refused."""

import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import orjson
from protobuf import DescField, Message, message_to_json_value

from edge.bindings import HTTP_BODY, Binding
from edge.codec import Codec
from edge.errors import Refused, Violation, invalid
from edge.schema.faults import BAD_INPUT, strict_tree, two_of_one
from edge.schema.parameters import FieldPathError, Parameter, resolve
from edge.schema.shapes import Shape, expectation

Given = tuple[Parameter, Any]  # a parameter and its JSON value
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SLASH_ESCAPE = re.compile("%2[Ff]")
_KNOWN_QUERIES = 256  # resolved names kept per binding; recursion makes them endless


def split_path(raw: bytes) -> tuple[list[str], list[str]]:
    """Split a request path: its segments as sent, and decoded to match literals.

    Raises Refused on a broken escape. "/" has no segment.
    """
    try:
        path = raw.decode()
    except UnicodeDecodeError:
        raise Refused("the path is not UTF-8") from None
    if path == "/":
        return [], []
    segments = path[1:].split("/") if path.startswith("/") else [path, ""]
    if "%" not in path:
        return segments, segments
    if _BAD_ESCAPE.search(path):
        raise Refused("the path has a broken percent escape")
    return segments, [unquote(s, errors="surrogateescape") for s in segments]


def _decoded(text: str, where: str) -> str:
    """Decode percent escapes; raises Refused unless the result is UTF-8."""
    if "%" not in text:
        return text
    if _BAD_ESCAPE.search(text):
        raise invalid(Violation(where, "it has a broken percent escape"))
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise invalid(Violation(where, "it is not UTF-8")) from None


def _path_values(binding: Binding, segments: list[str]) -> Iterator[Given]:
    """Give the values of a template's variables.

    Several segments keep their "%2F", so that it stays apart from a slash
    (http.proto).
    """
    for variable in binding.variables:
        parameter = variable.parameter
        if variable.single:
            text = _decoded(segments[variable.start], parameter.path)
        else:
            text = "/".join(segments[variable.start : variable.end])
            parts = _SLASH_ESCAPE.split(text)
            text = "%2F".join(_decoded(part, parameter.path) for part in parts)
        try:
            yield parameter, parameter.convert(text)
        except ValueError as error:
            raise invalid(Violation(parameter.path, str(error))) from None


def _pairs(query: bytes) -> Iterator[tuple[str, str]]:
    for part in query.decode("latin-1").split("&"):
        if part:
            name, _, value = part.replace("+", " ").partition("=")
            name = _decoded(name, "")
            if not name:
                raise invalid(Violation("", "a query parameter has no name"))
            yield name, _decoded(value, name)


def _query_parameter(codec: Codec, binding: Binding, name: str) -> Parameter:
    known = binding.queries.get(name)
    if known:
        return known
    found = resolve(codec, binding.request, name)
    if binding.body_all or found.fields[0] is binding.body_field:
        raise FieldPathError("it belongs into the body")
    if len(binding.queries) < _KNOWN_QUERIES:
        binding.queries[name] = found
    return found


def _query_values(codec: Codec, binding: Binding, query: bytes) -> Iterator[Given]:
    """Give the values of a query string, every fault of it told at once."""
    faults: list[Violation] = []
    lists: dict[tuple[str, ...], list[Any]] = {}
    for name, text in _pairs(query):
        try:
            parameter = _query_parameter(codec, binding, name)
            value = parameter.convert(text)
        except FieldPathError as error:
            faults.append(Violation(name, str(error), "UNKNOWN_FIELD"))
        except ValueError as error:
            faults.append(Violation(parameter.path, str(error)))
        else:
            if not parameter.many:
                yield parameter, value
            elif parameter.names in lists:
                lists[parameter.names].append(value)
            else:
                lists[parameter.names] = [value]
                yield parameter, lists[parameter.names]
    if faults:
        raise invalid(*faults)


class _Values:
    """Parameters on their way into one document; each field has one source."""

    def __init__(self) -> None:
        self.given: dict[tuple[str, ...], Given] = {}
        self._oneofs: dict[object, str] = {}

    def add(self, given: Given, *, repeats: bool = True) -> None:
        """Add a value; `repeats`: the same value may have been given before."""
        parameter, value = given
        before = self.given.setdefault(parameter.names, given)
        if before is not given:
            if not repeats:
                raise invalid(
                    Violation(parameter.path, "it is given twice", "DUPLICATE_FIELD")
                )
            if before[1] != value:
                raise _conflict(parameter)
        for level, oneof in parameter.oneofs:
            slot = (parameter.names[:level], oneof)
            other = self._oneofs.setdefault(slot, parameter.names[level])
            if other != parameter.names[level]:
                raise two_of_one(parameter.path, other)

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for parameter, value in self.given.values():
            _put(document, parameter.names, value)
        return document


def _put(document: dict[str, Any], names: tuple[str, ...], value: Any) -> None:
    for name in names[:-1]:
        document = document.setdefault(name, {})
    document[names[-1]] = value


def _conflict(parameter: Parameter) -> Refused:
    told = "it is given twice, with different values"
    return invalid(Violation(parameter.path, told, "CONFLICTING_VALUES"))


class RequestBuilder:
    """Makes the bytes of a request message out of what an HTTP request says."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def from_path(self, binding: Binding, segments: list[str]) -> bytes:
        """Give the request of a call that has neither query nor body nor headers."""
        if not binding.variables:
            return b""
        document: dict[str, Any] = {}
        given = tuple(_path_values(binding, segments))
        for parameter, value in given:
            _put(document, parameter.names, value)
        return self._message(binding.request, document, given).to_binary()

    def build(
        self,
        binding: Binding,
        segments: list[str],
        query: bytes,
        headers: Sequence[Given],
        cookies: Sequence[Given],
        body: tuple[Message, Any] | None,
    ) -> bytes:
        """Give the request of any call; `body` comes from `read_body`.

        `headers` may say again what the rest says, `cookies` may not. Raises
        Refused that names the field at fault.
        """
        values = _Values()
        for given in _path_values(binding, segments):
            values.add(given)
        paths = set(values.given)
        for given in _query_values(self._codec, binding, query):
            values.add(given, repeats=given[0].names in paths)
        for given in headers:
            values.add(given)
        for given in cookies:
            values.add(given, repeats=False)
        return self._joined(binding, values, cookies, body)

    def _joined(
        self,
        binding: Binding,
        values: _Values,
        cookies: Sequence[Given],
        body: tuple[Message, Any] | None,
    ) -> bytes:
        """Put both parts behind each other: on the wire that merges them."""
        given = values.given.values()
        bound = self._message(binding.request, values.document(), tuple(given))
        if body is None:
            return bound.to_binary()
        message, tree = body
        exclusive = {parameter.names for parameter, _ in cookies}
        for parameter, _ in given:
            _refuse_conflict(parameter, message, tree, bound, exclusive)
        self._derive_mask(binding, tree, bound)
        return message.to_binary() + bound.to_binary()

    def _message(
        self, shape: Shape, document: dict[str, Any], given: Sequence[Given]
    ) -> Message:
        """Give the message of the parameters; a fault is told by its parameter."""
        registry = self._codec.registry
        try:
            return shape.type.from_json(orjson.dumps(document), registry=registry)
        except BAD_INPUT:
            pass  # which of them it is, each tried alone shows
        for parameter, value in given:
            alone: dict[str, Any] = {}
            _put(alone, parameter.names, value)
            try:
                shape.type.from_json(orjson.dumps(alone), registry=registry)
            except BAD_INPUT:
                told = expectation(parameter.element)
                raise invalid(Violation(parameter.path, told)) from None
        raise Refused("the parameters do not fit together")

    def read_json(self, binding: Binding, body: bytes) -> tuple[Message, Any]:
        """Give the request message that a JSON body makes, and its values."""
        found = binding.body_field
        if found is None:
            return self._codec.read(body, binding.request)
        tree = strict_tree(body)  # one whole value: it cannot break out of the wrap
        key = binding.request.keys[found.name]
        if tree is None and not key.takes_null:
            raise invalid(Violation(found.json_name, expectation_of(binding)))
        wrapped = b'{"%s":%s}' % (found.json_name.encode(), body)
        return self._codec.read(wrapped, binding.request, {found.json_name: tree})

    def read_binary(self, binding: Binding, body: bytes) -> tuple[Message, Any]:
        """Give the request message that a protobuf body makes, and its values."""
        shape = binding.body_shape or binding.request
        try:
            message = shape.type.from_binary(body)
            tree: Any = message_to_json_value(message, registry=self._codec.registry)
        except BAD_INPUT:
            raise Refused(f"the body is not a {shape.desc.type_name}") from None
        return self._around(binding, message, tree)

    def read_raw(
        self, binding: Binding, body: bytes, content_type: str
    ) -> tuple[Message, Any]:
        """Give the request message around a body that is kept as it is (HttpBody)."""
        shape = binding.body_shape or binding.request
        message = shape.type()
        message[shape.keys["content_type"].field] = content_type
        message[shape.keys["data"].field] = body
        return self._around(binding, message, {})

    @staticmethod
    def _around(binding: Binding, message: Message, tree: Any) -> tuple[Message, Any]:
        found = binding.body_field
        if found is None:
            return message, tree
        outer = binding.request.type()
        outer[found] = message
        return outer, {found.json_name: tree}

    def _derive_mask(self, binding: Binding, tree: Any, bound: Message) -> None:
        """Name what a PATCH body holds, where nobody said what to change (AIP-134)."""
        mask, found = binding.mask, binding.body_field
        if mask is None or mask in bound or _at(tree, (mask,)) is not None:
            return
        held = tree if found is None else _at(tree, (found,))
        if not isinstance(held, dict) or binding.body_shape is None:
            return
        paths = [
            path
            for path in _mask_paths(held, binding.body_shape, "")
            if path not in binding.mask_skips
        ]
        if paths:
            made = self._codec.registry.message("google.protobuf.FieldMask")
            if made is not None:
                bound[mask] = made.type(paths=paths)


def expectation_of(binding: Binding) -> str:
    """Say what a binding's body must be."""
    shape = binding.body_shape
    return expectation(shape.desc) if shape else "must not be null"


def is_raw_body(binding: Binding) -> bool:
    """Tell whether the body is a google.api.HttpBody, taken as it is."""
    shape = binding.body_shape
    return shape is not None and shape.desc.type_name == HTTP_BODY


def _mask_paths(tree: dict[str, Any], shape: Shape, prefix: str) -> Iterator[str]:
    """Give a path for every leaf; lists, maps and well-known types are leaves."""
    for name, value in tree.items():
        key = shape.keys.get(name)
        if key is None:
            continue
        path = prefix + key.field.name
        if key.nested and not key.many and isinstance(value, dict) and value:
            yield from _mask_paths(value, key.nested, path + ".")
        else:
            yield path


def _at(tree: Any, fields: Sequence[DescField]) -> Any:
    """Give the value at a path of a JSON tree, in either spelling; None: absent."""
    for found in fields:
        if not isinstance(tree, dict):
            return None
        value = tree.get(found.json_name)
        tree = tree.get(found.name) if value is None else value
    return tree


def _value(message: Any, fields: Sequence[DescField]) -> Any:
    for found in fields:
        message = message[found] if message is not None else None
    return message


def _refuse_conflict(
    parameter: Parameter,
    message: Message,
    tree: Any,
    bound: Message,
    exclusive: set[tuple[str, ...]],
) -> None:
    """Refuse a body that says otherwise than a parameter, or says its oneof's rest."""
    fields = parameter.fields
    if _at(tree, fields) is not None and (
        parameter.names in exclusive or _value(message, fields) != _value(bound, fields)
    ):
        raise _conflict(parameter)
    for level, oneof in parameter.oneofs:
        held = _at(tree, fields[:level])
        for sibling in oneof.fields:
            if sibling is not fields[level] and _at(held, (sibling,)) is not None:
                raise two_of_one(parameter.path, sibling.json_name)
