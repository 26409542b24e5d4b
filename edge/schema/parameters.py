"""Request fields that are filled from text: path, query, headers and cookies."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protobuf import DescEnum, DescField, DescMessage, DescOneof, ScalarType

from edge.codec import Codec
from edge.schema.shapes import (
    TEXTUAL,
    WELL_KNOWN,
    WRAPPERS,
    Element,
    Shape,
    element_of,
    expectation,
    integer_range,
    is_list,
    is_map,
    message_of,
    oneof_of,
)

DEPTH_LIMIT = 32  # of a field path; the codec's own limit for messages is 100
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NOT_NUMBERS = frozenset(("NaN", "Infinity", "-Infinity"))
_SNAKE_HUMP = re.compile(r"_([a-z])")


class FieldPathError(ValueError):
    """A path that leads to no field which text can fill; says why."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A request field, by the way that leads to it, and how text becomes its value."""

    fields: tuple[DescField, ...]
    many: bool
    element: Element
    convert: Callable[[str], Any]  # text -> JSON value; ValueError where it cannot
    names: tuple[str, ...]  # of JSON, one a level
    oneofs: tuple[tuple[int, DescOneof], ...]  # with the level they stand on

    @property
    def path(self) -> str:
        """The field's path in JSON names, as errors tell it."""
        return ".".join(self.names)


def _integer(element: ScalarType, low: int, high: int) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise ValueError(expectation(element))
        return str(int(text))

    return convert


def _number(element: ScalarType) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if not _NUMBER.fullmatch(text) and text not in _NOT_NUMBERS:
            raise ValueError(expectation(element))
        return text

    return convert


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(expectation(ScalarType.BOOL))
    return text == "true"


def _mask(text: str) -> str:
    """Take proto names too: clients of gRPC know a mask's paths in that spelling."""
    return _SNAKE_HUMP.sub(lambda hump: hump.group(1).upper(), text)


def _enum(enum: DescEnum) -> Callable[[str], str]:
    """Take a name or a known number; ProtoJSON bodies also keep unknown numbers."""
    known = {str(v.number): v.name for v in enum.values}
    known |= {value.name: value.name for value in enum.values}

    def convert(text: str) -> str:
        if text not in known:
            raise ValueError(expectation(enum))
        return known[text]

    return convert


def converter(element: Element) -> Callable[[str], Any]:
    """Give what turns text into a type's JSON value.

    Raises FieldPathError for a type that has no form in text. Booleans are
    `true` and `false` only, integers are decimal.
    """
    if isinstance(element, DescEnum):
        return _enum(element)
    if isinstance(element, DescMessage):
        if element.type_name in WRAPPERS:
            return converter(WRAPPERS[element.type_name])
        if element.type_name == f"{WELL_KNOWN}FieldMask":
            return _mask
        if element.type_name in TEXTUAL:
            return str
        raise FieldPathError("a message cannot be given as text")
    bounds = integer_range(element)
    if bounds:
        return _integer(element, *bounds)
    if element in (ScalarType.FLOAT, ScalarType.DOUBLE):
        return _number(element)
    return _boolean if element is ScalarType.BOOL else str


def resolve(codec: Codec, shape: Shape, path: str) -> Parameter:
    """Give the field that a dotted path of proto or JSON names leads to.

    Raises FieldPathError if there is none, if the path goes through a list, a
    map or a scalar, or if the field's type has no form in text (http.proto).
    """
    fields: list[DescField] = []
    names = path.split(".")
    if len(names) > DEPTH_LIMIT:
        raise FieldPathError("the path is too long")
    at: Shape | None = shape
    for name in names:
        if at is None or at.special:
            raise FieldPathError("the path goes through what is not a message")
        field = at.field(name)
        if field is None:
            raise FieldPathError("there is no such field")
        fields.append(field)
        message = message_of(field)
        at = codec.shape(message) if message else None
    if is_map(fields[-1]):
        raise FieldPathError("a map cannot be given as text")
    element = element_of(fields[-1])
    oneofs = ((level, oneof_of(field)) for level, field in enumerate(fields))
    return Parameter(
        tuple(fields),
        is_list(fields[-1]),
        element,
        converter(element),
        tuple(field.json_name for field in fields),
        tuple((level, oneof) for level, oneof in oneofs if oneof is not None),
    )


def find_string(codec: Codec, shape: Shape, path: str) -> Parameter | None:
    """Give a field by path if it is one string, else None."""
    try:
        found = resolve(codec, shape, path)
    except FieldPathError:
        return None
    return found if found.element is ScalarType.STRING and not found.many else None
