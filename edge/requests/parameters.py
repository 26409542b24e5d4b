"""Values of request fields from the path, the query and the headers."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from edge.errors import HttpError, Violation, fault, invalid
from edge.http.etags import mismatch
from edge.routing.bindings import Binding
from edge.schema.fields import FieldPathError, Parameter, resolve

FieldValue = tuple[Parameter, Any]  # a field and its JSON value
Headers = dict[bytes, bytes]
_INVALID_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SLASH_ESCAPE = re.compile("%2[Ff]")
_DOT_SEGMENTS = frozenset((".", ".."))
_MAX_CACHED_QUERIES = 256  # per binding; recursive types have endless names


def split_path(raw: bytes) -> tuple[list[str], list[str]]:
    """Split a request path: its segments as sent, and decoded to match literals.

    "/" has no segment. Raises HttpError on an invalid escape, and on a dot segment,
    which other parties remove, so that they would read another path (RFC 3986 5.2.4).
    """
    try:
        path = raw.decode()
    except UnicodeDecodeError:
        raise HttpError("the path is not UTF-8") from None
    if path == "/":
        return [], []
    segments = path[1:].split("/") if path.startswith("/") else [path, ""]
    literals = segments
    if "%" in path:
        if _INVALID_ESCAPE.search(path):
            raise HttpError(
                "the path has invalid percent-encoding: encode a literal % as %25"
            )
        literals = [unquote(s, errors="surrogateescape") for s in segments]
    if not _DOT_SEGMENTS.isdisjoint(literals):
        raise HttpError("the path must not contain the segment '.' or '..'")
    return segments, literals


def _decoded(text: str, field: str) -> str:
    """Decode percent escapes; raises HttpError unless the result is UTF-8."""
    if "%" not in text:
        return text
    if _INVALID_ESCAPE.search(text):
        raise fault(
            field, "must have valid percent-encoding: encode a literal % as %25"
        )
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise fault(field, "must be UTF-8") from None


def text_value(parameter: Parameter, text: str) -> FieldValue:
    """Parse the text of a field; raises HttpError."""
    value = parameter.read(text)
    if value is None:
        raise fault(parameter.path, parameter.last.kind.requirement)
    return parameter, value


def path_values(binding: Binding, segments: list[str]) -> Iterator[FieldValue]:
    """Yield the values of a template's variables; raises HttpError.

    A variable of several segments keeps "%2F", which differs from a slash
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
    """Return whether a path's variables have the types of their fields."""
    try:
        return all(path_values(binding, segments))
    except HttpError:
        return False


def _query_pairs(query: bytes) -> Iterator[tuple[str, str]]:
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
    parameter = resolve(binding.request, name)
    if binding.whole_body or parameter.fields[0] is binding.body_field:
        raise FieldPathError("must be in the request body")
    if len(binding.queries) < _MAX_CACHED_QUERIES:
        binding.queries[name] = parameter
    return parameter


def query_values(binding: Binding, query: bytes) -> Iterator[FieldValue]:
    """Yield the values of a query string; raises HttpError with all its violations."""
    violations: list[Violation] = []
    lists: dict[tuple[str, ...], list[Any]] = {}
    for name, text in _query_pairs(query):
        try:
            parameter, value = text_value(_query_parameter(binding, name), text)
        except FieldPathError as error:
            violations.append(Violation(name, str(error), "UNKNOWN_FIELD"))
        except HttpError as error:
            violations.extend(error.violations)
        else:
            if not parameter.last.many:
                yield parameter, value
            elif parameter.names in lists:
                lists[parameter.names].append(value)
            else:
                lists[parameter.names] = [value]
                yield parameter, lists[parameter.names]
    if violations:
        raise invalid(*violations)


def refuse_conditions(binding: Binding, headers: Headers) -> None:
    """Refuse conditions that would not be checked before a change (RFC 9110 13.1)."""
    if b"if-none-match" in headers:
        raise HttpError("If-None-Match is supported for GET and HEAD only: remove it")
    conditional = headers.get(b"if-match", b"*") != b"*"
    if conditional and "If-Match" not in binding.headers:
        raise mismatch(
            "this method does not support If-Match with an entity tag: "
            "send the request without If-Match"
        )


def header_values(binding: Binding, headers: Headers) -> Iterator[FieldValue]:
    """Yield the values of fields that standard headers fill.

    If-Match is the one version that the dispatcher has read from it.
    """
    for name, parameter in binding.headers.items():
        value = headers.get(name.lower().encode())
        if value is None:
            continue
        if name == "Last-Event-ID":
            if value:
                yield parameter, value.decode("utf-8", "replace")
        elif name == "Idempotency-Key":
            yield parameter, value.decode("latin-1").strip('"')
        elif version := value.decode("latin-1"):
            yield parameter, version
