"""Errors of JSON bodies: size, ambiguity, and the search for an invalid field."""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from itertools import accumulate
from time import thread_time
from typing import Any

from protobuf import Message, Registry

from edge.errors import BAD_INPUT, HttpError, Violation, fault, invalid, oneof_conflict
from edge.schema.fields import Field, Shape
from edge.schema.integers import refuse_invalid_integers
from edge.schema.kinds import ANY

# The native codec parses JSON by recursion without a limit of its own: about 15,000
# brackets overflow the stack and end the process. No message type nests this deep.
MAX_DEPTH = 1_000
MAX_CONTAINERS = 5_000  # lists and objects in one body
MAX_VALUES = 100_000
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\1\1\xff\xff")  # as signed bytes: 1 and -1
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
# CPU time for finding the invalid field; afterwards the error names its parent.
SEARCH_SECONDS = 0.25
MAX_INTEGER_DIGITS = 31  # a longer one fits no type; Python limits int() itself
_TOO_DEEP = f"the JSON body must be nested at most {MAX_DEPTH} levels deep"


def refuse_complexity(body: bytes) -> None:
    """Raise HttpError if parsing a body would cost far more than its size suggests.

    That is a body nested deeper than MAX_DEPTH or with too many values.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH and len(body) <= MAX_VALUES:
        return
    bare = _STRINGS.sub(b"", body)
    steps = bare.translate(_STEPS, _NOT_BRACKETS)
    if max(accumulate(memoryview(steps).cast("b")), default=0) > MAX_DEPTH:
        raise HttpError(_TOO_DEEP)
    containers = bare.count(b"{") + bare.count(b"[")
    _refuse_more(containers, MAX_CONTAINERS, "lists and objects")
    _refuse_more(bare.count(b","), MAX_VALUES, "values")


def _refuse_more(count: int, limit: int, items: str) -> None:
    if count > limit:
        message = f"the JSON body has more than {limit} {items}"
        raise HttpError(message, "BODY_TOO_LARGE", http=413)


class _Duplicate(ValueError):
    """A JSON object has the same key twice."""


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its keys, duplicates included."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    by_name = dict(pairs)
    if len(by_name) != len(pairs):
        raise _Duplicate
    return by_name


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_INTEGER_DIGITS else float(digits)


_decoder = json.JSONDecoder(object_pairs_hook=_distinct, parse_int=_integer)
_pairs_decoder = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=float)


def strict_tree(body: bytes, prefix: str = "") -> Any:
    """Parse JSON; raises HttpError for invalid JSON and for duplicate keys.

    `prefix` is the path of the text, for the error.
    """
    try:
        text = body.decode()
        try:
            return _decoder.decode(text)
        except _Duplicate:
            steps = reversed(_duplicate_path(_pairs_decoder.decode(text)))
            path = "".join((prefix, *steps)).lstrip(".")
            message = "must not appear twice"
            raise fault(path, message, "DUPLICATE_FIELD") from None
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
        raise HttpError(f"the body is not JSON: {error.msg} at {position}") from None
    except UnicodeDecodeError:
        raise HttpError("the body is not JSON: it is not UTF-8") from None
    except RecursionError:
        raise HttpError(_TOO_DEEP) from None


def _duplicate_path(value: Any) -> list[str]:
    """Return the path, last step first, of the first duplicate key."""
    if isinstance(value, _Pairs):
        seen: set[str] = set()
        for name, item in value:
            if name in seen:
                return [f".{name}"]
            seen.add(name)
            if path := _duplicate_path(item):
                return [*path, f".{name}"]
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if path := _duplicate_path(item):
                return [*path, f"[{index}]"]
    return []


UnpackAny = Callable[[Any], Shape | None]  # the JSON of an Any -> its inner type


def refuse_ambiguity(
    tree: Any, shape: Shape, unpack: UnpackAny, prefix: str = ""
) -> None:
    """Refuse a field or a map key that is set twice, and two members of a oneof."""
    actual = unpack(tree) if shape.name == ANY else shape
    if actual is None or actual.special or not isinstance(tree, dict):
        return
    seen: dict[object, str] = {}
    for name, value in tree.items():
        field = actual.named.get(name)
        if field is None:
            continue
        path = prefix + field.json_name
        refuse_invalid_integers(field, value, path)
        _refuse_second(field, value, path, seen)
        for step, item in field.items(value) if field.typed else ():
            assert field.typed is not None  # noqa: S101  # checked above, for mypy
            refuse_ambiguity(item, field.typed, unpack, f"{path}{step}.")


def _refuse_second(
    field: Field, value: Any, path: str, seen: dict[object, str]
) -> None:
    if field.json_name in seen:
        raise fault(path, "must not be set twice", "DUPLICATE_FIELD")
    seen[field.json_name] = path
    if value is None and not field.takes_null:
        return
    if field.oneof in seen:
        raise oneof_conflict(path, seen[field.oneof])
    if field.oneof is not None:
        seen[field.oneof] = path
    if field.integer_keys and len({_number(key, path) for key in value}) < len(value):
        raise fault(path, "must not have the same key twice", "DUPLICATE_FIELD")


def _number(key: str, path: str) -> Decimal:
    try:
        return Decimal(key)
    except ArithmeticError:  # the exponent is out of range even for Decimal
        raise fault(path, "must have integers as keys") from None


_LENIENT = frozenset(
    f"google.protobuf.{name}"
    for name in ("Any", "FieldMask", "ListValue", "Struct", "Value")
)


def _may_hold(shape: Shape, names: frozenset[str], seen: set[str]) -> bool:
    """Return whether a type is one of `names` or may contain one of them."""
    if shape.name in names:
        return True
    if shape.special or shape.name in seen:
        return False
    seen.add(shape.name)
    return any(
        field.message is not None and _may_hold(field.message, names, seen)
        for field in shape.fields
    )


class FaultFinder:
    """Parse bodies, and find the field that makes the codec refuse one.

    The search parses ever smaller parts of the body.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lenient: dict[str, bool] = {}  # types whose values may have no JSON form

    def read(self, shape: Shape, text: bytes | str) -> Message:
        """Parse a message; raises one of BAD_INPUT.

        The codec parses some values that it cannot serialise, to bytes or to JSON:
        a number outside an enum's range, an infinite Value, a mask's empty path.
        """
        message = shape.type.from_json(text, registry=self._registry)
        message.to_binary()
        if shape.name not in self._lenient:
            self._lenient[shape.name] = _may_hold(shape, _LENIENT, set())
        if self._lenient[shape.name]:
            message.to_json(registry=self._registry)
        return message

    def refusal(self, body: bytes, shape: Shape) -> HttpError:
        """Return the error for a body that the codec refuses."""
        try:
            search = _Search(self.read)
            violation = search.violation(strict_tree(body), shape, "")
        except HttpError as error:
            return error
        except RecursionError:
            return HttpError(_TOO_DEEP)
        return invalid(violation or Violation("", shape.kind.requirement))


class _Search:
    """One search for the first invalid field of a value."""

    def __init__(self, read: Callable[[Shape, str], Message]) -> None:
        self._read = read
        self._deadline = thread_time() + SEARCH_SECONDS

    @property
    def _is_over(self) -> bool:
        return thread_time() > self._deadline

    def violation(self, tree: Any, shape: Shape, path: str) -> Violation | None:
        """Return the first invalid field in a JSON value, as deep as time allows."""
        if shape.special or not isinstance(tree, dict):
            valid = self._is_valid(shape, tree)
            return None if valid else Violation(path, shape.kind.requirement)
        for name, value in tree.items():
            if self._is_valid(shape, {name: value}):
                continue
            field = shape.named.get(name)
            field_path = f"{path}.{field.json_name if field else name}".lstrip(".")
            if field is None:
                return Violation(field_path, "there is no such field", "UNKNOWN_FIELD")
            return self._inside(value, field, field_path, shape)
        return None

    def _inside(self, value: Any, field: Field, path: str, shape: Shape) -> Violation:
        """Search inside the value of an invalid field."""
        if self._is_over:
            return Violation(
                path, "is invalid; the body is too large to find the invalid field"
            )
        if field.many:
            if not isinstance(value, field.many):
                expected = "a list" if field.many is list else "an object"
                return Violation(path, f"must be {expected}")
            step, value = self._first_invalid(value, field, shape)
            path += step
        violation = self.violation(value, field.nested, path) if field.nested else None
        return violation or Violation(path, field.kind.requirement)

    def _first_invalid(self, value: Any, field: Field, shape: Shape) -> tuple[str, Any]:
        """Bisect the elements: a part is valid only if all its elements are."""
        parts = list(value.items() if field.many is dict else value)
        valid, end = 0, len(parts)
        while end - valid > 1:
            middle = (valid + end) // 2
            part: Any = parts[valid:middle]
            part = dict(part) if field.many is dict else part
            if self._is_valid(shape, {field.json_name: part}):
                valid = middle
            else:
                end = middle
        return list(field.items(value))[valid]

    def _is_valid(self, shape: Shape, value: Any) -> bool:
        """Return whether a value is valid; False once the time is over."""
        if self._is_over:
            return False
        try:
            self._read(shape, json.dumps(value))
        except BAD_INPUT:
            return False
        return True
