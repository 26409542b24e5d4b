"""Path, query, headers and body -> the request message; conflicts are refused."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import orjson
from protobuf import DescField, Message

from edge.bindings import RESUME, Binding
from edge.codec import Codec
from edge.errors import BAD_INPUT, HttpError, Violation, fault, invalid, two_of_one
from edge.http.negotiation import JSON, PROTOBUF, body_kind
from edge.schema.faults import strict_tree
from edge.schema.fields import Field, FieldPathError, Parameter, Shape, resolve

Given = tuple[Parameter, Any]  # a parameter and its JSON value
Headers = dict[bytes, bytes]
Body = tuple[Message, Any]  # the request message that a body makes, and its values
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_STRONG_TAG = re.compile(r'"([^"]+)"|([^",/]+)')  # many leave the quotes out
_SLASH_ESCAPE = re.compile("%2[Ff]")
_KNOWN_QUERIES = 256  # resolved names kept per binding; recursion makes them endless


def split_path(raw: bytes) -> tuple[list[str], list[str]]:
    """Split a request path: its segments as sent, and decoded to match literals.

    Raises HttpError on a broken escape. "/" has no segment.
    """
    try:
        path = raw.decode()
    except UnicodeDecodeError:
        raise HttpError("the path is not UTF-8") from None
    if path == "/":
        return [], []
    segments = path[1:].split("/") if path.startswith("/") else [path, ""]
    if "%" not in path:
        return segments, segments
    if _BAD_ESCAPE.search(path):
        raise HttpError("the path has a broken percent escape")
    return segments, [unquote(s, errors="surrogateescape") for s in segments]


def _decoded(text: str, where: str) -> str:
    """Decode percent escapes; raises HttpError unless the result is UTF-8."""
    if "%" not in text:
        return text
    if _BAD_ESCAPE.search(text):
        raise fault(where, "it has a broken percent escape")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise fault(where, "it is not UTF-8") from None


def text_value(parameter: Parameter, text: str) -> Given:
    """Give a parameter with the value that a text is; raises HttpError."""
    value = parameter.read(text)
    if value is None:
        raise fault(parameter.path, parameter.last.kind.requirement)
    return parameter, value


def _path_values(binding: Binding, segments: list[str]) -> Iterator[Given]:
    """Give the values of a template's variables.

    Several segments keep their "%2F", so that it stays apart from a slash
    (http.proto).
    """
    for variable, parameter in binding.variables:
        if variable.single:
            text = _decoded(segments[variable.start], parameter.path)
        else:
            text = "/".join(segments[variable.start : variable.end])
            parts = _SLASH_ESCAPE.split(text)
            text = "%2F".join(_decoded(part, parameter.path) for part in parts)
        yield text_value(parameter, text)


def fits(binding: Binding, segments: list[str]) -> bool:
    """Tell whether a path's variables are what their fields take."""
    try:
        return all(_path_values(binding, segments))
    except HttpError:
        return False


def _pairs(query: bytes) -> Iterator[tuple[str, str]]:
    for part in query.decode("latin-1").split("&"):
        if part:
            name, _, value = part.replace("+", " ").partition("=")
            name = _decoded(name, "")
            if not name:
                raise fault("", "a query parameter has no name")
            yield name, _decoded(value, name)


def _query_parameter(binding: Binding, name: str) -> Parameter:
    if name in binding.queries:
        return binding.queries[name]
    found = resolve(binding.request, name)
    if binding.whole_body or found.fields[0] is binding.body_field:
        raise FieldPathError("it belongs into the body")
    if len(binding.queries) < _KNOWN_QUERIES:
        binding.queries[name] = found
    return found


def _query_values(binding: Binding, query: bytes) -> Iterator[Given]:
    """Give the values of a query string, every fault of it told at once."""
    faults: list[Violation] = []
    lists: dict[tuple[str, ...], list[Any]] = {}
    for name, text in _pairs(query):
        try:
            parameter, value = text_value(_query_parameter(binding, name), text)
        except FieldPathError as error:
            faults.append(Violation(name, str(error), "UNKNOWN_FIELD"))
        except HttpError as refused:
            faults.extend(refused.violations)
        else:
            if not parameter.last.many:
                yield parameter, value
            elif parameter.names in lists:
                lists[parameter.names].append(value)
            else:
                lists[parameter.names] = [value]
                yield parameter, lists[parameter.names]
    if faults:
        raise invalid(*faults)


def _strong_tag(if_match: str) -> str:
    """Give the one version that If-Match asks for; "" asks for any (RFC 9110 13.1.1).

    A weak tag is of an answer that has no version, so it never matches: 412.
    """
    match = _STRONG_TAG.fullmatch(if_match)
    if match is None:
        told = "If-Match takes one strong entity tag or *"
        raise HttpError(told, "ETAG_MISMATCH", http=412)
    return "" if if_match == "*" else match[1] or match[2]


def refuse_conditions(binding: Binding, headers: Headers) -> None:
    """Refuse conditions of a change that nobody here would ask (RFC 9110 13.1)."""
    if b"if-none-match" in headers:
        raise HttpError("If-None-Match is for GET and HEAD here")
    asks = headers.get(b"if-match", b"*").strip() != b"*"
    if asks and "If-Match" not in binding.headers:
        told = "what this changes has no version for If-Match"
        raise HttpError(told, "ETAG_MISMATCH", http=412)


def _header_values(binding: Binding, headers: Headers) -> Iterator[Given]:
    """Give the request fields that HTTP's own headers fill."""
    for name, parameter in binding.headers.items():
        value = headers.get(name.lower().encode())
        if value is None:
            continue
        if name == "Last-Event-ID" and not value:
            continue
        if name == "Last-Event-ID":
            yield parameter, value.decode("utf-8", "replace")
        elif name == "Idempotency-Key":
            yield parameter, value.decode("latin-1").strip().strip('"')
        elif tag := _strong_tag(value.decode("latin-1").strip()):
            yield parameter, tag


def _joined(
    paths: Sequence[Given],
    query: Iterable[Given],
    headers: Iterable[Given],
    cookies: Iterable[Given],
    same: Callable[[Given, Given], bool],
) -> Sequence[Given]:
    """Put the sources together: each field has one value, each oneof one member."""
    found = {parameter.names: (parameter, value) for parameter, value in paths}
    bound = set(found)
    for given in query:
        _add(found, given, same if given[0].names in bound else None)
    for given in headers:
        if given[0].last.name == RESUME:  # where a client is by now, not where it began
            found[given[0].names] = given
        _add(found, given, same)
    for given in cookies:
        _add(found, given, None)
    members: dict[object, str] = {}
    for parameter, _ in found.values():
        for level, oneof in parameter.oneofs:
            name = parameter.names[level]
            other = members.setdefault((parameter.names[:level], oneof), name)
            if other != name:
                raise two_of_one(parameter.path, other)
    return tuple(found.values())


def _add(
    found: dict[tuple[str, ...], Given],
    given: Given,
    same: Callable[[Given, Given], bool] | None,
) -> None:
    """Add a value; with `same`, an equal value may have been given before."""
    parameter, _ = given
    before = found.setdefault(parameter.names, given)
    if before is given:
        return
    if same is None:
        raise fault(parameter.path, "it is given twice", "DUPLICATE_FIELD")
    if not same(before, given):
        raise _conflict(parameter)


def _document(given: Sequence[Given]) -> bytes:
    """Give the JSON of a request that has these values and no other."""
    document: dict[str, Any] = {}
    for parameter, value in given:
        at = document
        for name in parameter.names[:-1]:
            at = at.setdefault(name, {})
        at[parameter.names[-1]] = value
    return orjson.dumps(document)


def _conflict(parameter: Parameter) -> HttpError:
    told = "it is given twice, with different values"
    return fault(parameter.path, told, "CONFLICTING_VALUES")


class RequestBuilder:
    """Makes the bytes of a request message out of what an HTTP request says."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def build(
        self,
        binding: Binding,
        segments: list[str],
        query: bytes,
        headers: Headers,
        cookies: Sequence[Given],
        body: bytes,
    ) -> bytes:
        """Give the request of any call.

        Headers may say again what the rest says, cookies may not. Raises HttpError
        that names the field at fault. Both parts stand behind each other: on the
        wire that merges them.
        """
        told = [*_header_values(binding, headers)] if binding.headers else []
        read = self._read(binding, headers.get(b"content-type"), body) if body else None
        given: Sequence[Given] = [*_path_values(binding, segments)]
        if query or told or cookies:
            values = _query_values(binding, query)
            given = _joined(given, values, told, cookies, self._same(binding))
        if not (given or read):
            return b""
        bound = self._message(binding.request, given)
        if read is None:
            return bound.to_binary()
        exclusive = {parameter.names for parameter, _ in cookies}
        for parameter, _ in given:
            _refuse_conflict(parameter, read, bound, parameter.names in exclusive)
        self._derive_mask(binding, read[1], bound)
        return read[0].to_binary() + bound.to_binary()

    def _same(self, binding: Binding) -> Callable[[Given, Given], bool]:
        def same(one: Given, other: Given) -> bool:
            if one[1] == other[1]:
                return True
            made = [self._message(binding.request, [given]) for given in (one, other)]
            return bool(made[0] == made[1])  # 1 and 1.0, one moment in two zones

        return same

    def _message(self, shape: Shape, given: Sequence[Given]) -> Message:
        """Give the message of the parameters; a fault is told by its parameter."""
        try:
            return self._codec.parsed(shape, _document(given))
        except BAD_INPUT:
            pass  # which of them it is, each tried alone shows
        for one in given:
            try:
                self._codec.parsed(shape, _document([one]))
            except BAD_INPUT:
                raise fault(one[0].path, one[0].last.kind.requirement) from None
        raise HttpError("the parameters do not fit together")

    def _read(self, binding: Binding, content_type: bytes | None, body: bytes) -> Body:
        """Give the request message that a body makes, and its values."""
        shape = binding.body
        if shape is not None and binding.raw_body:
            told = (content_type or b"application/octet-stream").decode("latin-1")
            message = shape.type()
            message[shape.named["content_type"].desc] = told
            message[shape.named["data"].desc] = body
            return _around(binding, message, {})
        offers = (JSON, PROTOBUF) if shape else (JSON,)
        if body_kind(content_type, offers) == JSON:
            return self._read_json(binding, body)
        assert shape is not None  # noqa: S101  # else it is not offered
        try:
            message = shape.type.from_binary(body)
        except BAD_INPUT:
            raise HttpError(f"the body is not a {shape.name}") from None
        return _around(binding, message, _held(message, shape))

    def _read_json(self, binding: Binding, body: bytes) -> Body:
        found = binding.body_field
        if found is None:
            return self._codec.read(body, binding.request)
        # one whole value: it cannot break out of the wrap
        tree = strict_tree(body, found.json_name)
        if tree is None and not found.takes_null:
            told = binding.body.kind.requirement if binding.body else "must not be null"
            raise fault(found.json_name, told)
        wrapped = b'{"%s":%s}' % (found.json_name.encode(), body)
        return self._codec.read(wrapped, binding.request, {found.json_name: tree})

    def _derive_mask(self, binding: Binding, tree: Any, bound: Message) -> None:
        """Name what a PATCH body holds, where nobody said what to change (AIP-134)."""
        mask, found = binding.mask, binding.body_field
        if mask is None or mask.message is None or binding.body is None:
            return
        if mask.desc in bound or _at(tree, (mask,)) is not None:
            return
        held = _at(tree, (found,) if found else ())
        paths = [
            path
            for path in _mask_paths(held, binding.body, "")
            if path not in binding.mask_skips
        ]
        if paths:
            bound[mask.desc] = mask.message.type(paths=paths)


def _around(binding: Binding, message: Message, tree: Any) -> Body:
    found = binding.body_field
    if found is None:
        return message, tree
    outer = binding.request.type()
    outer[found.desc] = message
    return outer, {found.json_name: tree}


def _held(message: Any, shape: Shape) -> dict[str, Any]:
    """Give what is set of a message, by JSON names, as a tree."""
    return {
        field.json_name: _held(field.of(message), field.nested)
        if field.nested and not field.many
        else field.of(message)
        for field in shape.fields
        if field.desc in message
    }


def _mask_paths(tree: Any, shape: Shape, prefix: str) -> Iterator[str]:
    """Give a path for every leaf; lists, maps and well-known types are leaves."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        found = shape.named.get(name)
        if found is None:
            continue
        path = prefix + found.name
        if found.nested and not found.many and isinstance(value, dict) and value:
            yield from _mask_paths(value, found.nested, path + ".")
        else:
            yield path


def _at(tree: Any, fields: Sequence[Field | DescField]) -> Any:
    """Give the value at a path of a JSON tree, in either spelling; None: absent."""
    for found in fields:
        if not isinstance(tree, dict):
            return None
        value = tree.get(found.json_name)
        tree = tree.get(found.name) if value is None else value
    return tree


def _is_given(tree: Any, field: DescField) -> bool:
    """Tell whether a field stands in a tree; null is a value of some."""
    if _at(tree, (field,)) is not None:
        return True
    names = {field.name, field.json_name} if isinstance(tree, dict) else set()
    return not names.isdisjoint(tree) and Field(field, {}).takes_null


def value_at(message: Any, fields: Sequence[Field]) -> Any:
    """Give the value at a path of a message; None: a message on the way is absent."""
    for found in fields:
        message = found.of(message) if message is not None else None
    return message


def _refuse_conflict(
    parameter: Parameter, body: Body, bound: Message, exclusive: bool
) -> None:
    """Refuse a body that says otherwise than a parameter, or says its oneof's rest."""
    (message, tree), fields = body, parameter.fields
    if _at(tree, fields) is not None:
        if exclusive:
            raise fault(parameter.path, "it is given twice", "DUPLICATE_FIELD")
        if value_at(message, fields) != value_at(bound, fields):
            raise _conflict(parameter)
    for level, oneof in parameter.oneofs:
        held = _at(tree, fields[:level])
        for sibling in oneof.fields:
            if sibling is not fields[level].desc and _is_given(held, sibling):
                raise two_of_one(parameter.path, sibling.json_name)
