"""Message types, by the names of their fields and what their values look like.

The one walk over descriptors: JSON, text and schemas all read these tables.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from protobuf import (
    DescEnum,
    DescField,
    DescFieldValueEnum,
    DescFieldValueList,
    DescFieldValueMap,
    DescFieldValueMessage,
    DescFieldValueScalar,
    DescMessage,
    DescOneof,
    ScalarType,
)

Schema = dict[str, Any]
Element = ScalarType | DescEnum | DescMessage
DEPTH_LIMIT = 32  # of a field path; the codec's own limit for messages is 100
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
_FLOAT32_END = (2 - 2**-24) * 2.0**127  # what is less rounds to it
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(
    r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|NaN|-?Infinity"
)
_HUMP = re.compile(r"_([a-z])")


class FieldPathError(ValueError):
    """A path that leads to no field which text can fill; says why."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the values of one type are: in words, as text, and as JSON Schema."""

    told: str  # what a value must be; it echoes nothing of what was sent
    read: Callable[[str], Any] | None = None  # text -> JSON value; None: it is not one
    asked: Schema | None = None  # in requests; None: an object of fields
    sent: Schema | None = None  # in answers, where it differs


def _integer(low: int, high: int) -> Kind:
    """Take decimal integers.

    Requests tell 64 bits as a number, so that bounds can be said; answers write
    them as a string, as ProtoJSON does.
    """

    def read(text: str) -> str | None:
        good = _INTEGER.fullmatch(text) and low <= int(text) <= high
        return str(int(text)) if good else None

    size = "int32" if high < 2**32 else "int64"
    asked = {"type": "integer", "format": size, "minimum": low, "maximum": high}
    text = {"type": "string", "format": size, "pattern": "^-?[0-9]+$"}
    told = f"must be an integer from {low} to {high}"
    return Kind(told, read, asked, asked if size == "int32" else text)


def rounded(value: Any) -> Any:
    """Give the greatest float32 for what is beyond it and rounds to it.

    Others print it as 3.4028235e+38.
    """
    try:
        beyond = FLOAT32_MAX < abs(float(value)) < _FLOAT32_END
    except (OverflowError, TypeError, ValueError):
        return value
    return math.copysign(FLOAT32_MAX, float(value)) if beyond else value


def _number(told: str, change: Callable[[Any], Any] = lambda text: text) -> Kind:
    number = {"type": "number"}
    sent = {"anyOf": [number, {"enum": ["NaN", "Infinity", "-Infinity"]}]}

    def read(text: str) -> Any:
        return change(text) if _NUMBER.fullmatch(text) else None

    return Kind(told, read, number, sent)


def _enum(enum: DescEnum) -> Kind:
    """Take a name or a known number; ProtoJSON bodies also keep unknown numbers."""
    names = [value.name for value in enum.values]
    known = {str(value.number): value.name for value in enum.values}
    known |= {name: name for name in names}
    words: Schema = {"type": "string", "enum": names}
    numbers = list(dict.fromkeys(value.number for value in enum.values))
    asked: Schema = {"anyOf": [words, {"type": "integer", "enum": numbers}]}
    sent = {"anyOf": [words, {"type": "integer"}]} if enum.open else asked
    if enum.type_name == "google.protobuf.NullValue":
        asked = sent = {"type": "null"}
    return Kind(f"must be one of {', '.join(names[:20])}", known.get, asked, sent)


def _camel(mask: str) -> str:
    """Take proto names too: clients of gRPC know a mask's paths in that spelling."""
    return _HUMP.sub(lambda hump: hump[1].upper(), mask)


_TEXT: Schema = {"type": "string"}
_BOOLS = {"true": True, "false": False}
_KINDS = (
    ("BOOL", Kind("must be true or false", _BOOLS.get, {"type": "boolean"})),
    ("INT32 SINT32 SFIXED32", _integer(-(2**31), 2**31 - 1)),
    ("INT64 SINT64 SFIXED64", _integer(-(2**63), 2**63 - 1)),
    ("UINT32 FIXED32", _integer(0, 2**32 - 1)),
    ("UINT64 FIXED64", _integer(0, 2**64 - 1)),
    ("FLOAT", _number("must be a number that a float32 can hold", rounded)),
    ("DOUBLE", _number("must be a number")),
    ("STRING", Kind("must be a string", str, _TEXT)),
    (
        "BYTES",
        Kind("must be bytes in base64", str, _TEXT | {"contentEncoding": "base64"}),
    ),
)
_SCALARS = {ScalarType[name]: kind for names, kind in _KINDS for name in names.split()}
_OBJECT = Kind("must be an object")
# Messages whose JSON is not an object of their fields.
_TIME = "must be an RFC 3339 time such as 2024-01-31T09:30:00Z"
_SECONDS = "must be a time in seconds such as 1.5s"
_PATHS = "must be field paths in lowerCamelCase, with commas"
_ANY = "must be an object whose @type names a known type"
_NAME = "[a-z][A-Za-z]*"
_MASK_PATH = rf"{_NAME}(\.{_NAME})*"
_MASK = _TEXT | {
    "pattern": f"^({_MASK_PATH}(,{_MASK_PATH})*)?$",
    "description": "Field paths, with commas.",
}
_TYPED = {"type": "object", "properties": {"@type": _TEXT}, "required": ["@type"]}
_SPECIAL = {
    "Timestamp": Kind(_TIME, str, _TEXT | {"format": "date-time"}),
    "Duration": Kind(_SECONDS, str, _TEXT | {"pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"}),
    "FieldMask": Kind(_PATHS, _camel, _MASK),
    "Any": Kind(_ANY, None, _TYPED),
    "Struct": Kind(_OBJECT.told, None, {"type": "object"}),
    "Value": Kind(_OBJECT.told, None, {}),
    "ListValue": Kind("must be a list", None, {"type": "array"}),
}
_WRAPPED = (
    *("Bool", "Int32", "Int64", "UInt32", "UInt64"),
    *("Float", "Double", "String", "Bytes"),
)
_MESSAGES = {
    **{f"google.protobuf.{name}": kind for name, kind in _SPECIAL.items()},
    **{f"google.protobuf.{n}Value": _SCALARS[ScalarType[n.upper()]] for n in _WRAPPED},
}
_WORDS = (ScalarType.STRING, ScalarType.BOOL)  # other map keys are integers
ANY = "google.protobuf.Any"
_NULLS = ("google.protobuf.Value", "google.protobuf.NullValue")


def kind_of(element: Element) -> Kind:
    """Give what the values of a type are."""
    if isinstance(element, ScalarType):
        return _SCALARS[element]
    if isinstance(element, DescEnum):
        return _enum(element)
    return _MESSAGES.get(element.type_name, _OBJECT)


class Shape:
    """A message type by the names that its fields may have, in both spellings."""

    def __init__(self, desc: DescMessage, known: dict[str, "Shape"]) -> None:
        known[desc.type_name] = self  # stands already where it refers to itself
        self.desc = desc
        self.name = desc.type_name
        self.type = desc.type
        self.kind = kind_of(desc)
        self.special = desc.type_name in _MESSAGES
        self.fields = [Field(field, known) for field in desc.fields]
        self.named: dict[str, Field] = {}
        for field in self.fields:
            self.named[field.name] = self.named[field.json_name] = field


def shape_of(desc: DescMessage, known: dict[str, Shape]) -> Shape:
    """Give the shape of a message type; `known` keeps one per type."""
    return known.get(desc.type_name) or Shape(desc, known)


class Field:
    """A field, by what its JSON may hold."""

    def __init__(self, desc: DescField, known: dict[str, Shape]) -> None:
        self.desc = desc
        self.name = desc.name
        self.json_name = desc.json_name
        self.many: type[list[Any]] | type[dict[str, Any]] | None = None
        self.oneof: DescOneof | None = None
        self.whole_keys = False  # a map's keys are integers
        match desc.value:
            case (
                DescFieldValueScalar(scalar=element)
                | DescFieldValueEnum(enum=element)
                | DescFieldValueMessage(message=element)
            ):
                self.oneof = desc.value.oneof
            case DescFieldValueList(element=element):
                self.many = list
            case DescFieldValueMap(value=element):
                self.many = dict
                self.whole_keys = desc.value.key not in _WORDS
        self.element: Element = element
        self.kind = kind_of(element)
        message = shape_of(element, known) if isinstance(element, DescMessage) else None
        self.typed = message  # of one value, be it of a list, a map or alone
        self.nested = None if message is None or message.special else message
        self.message = None if self.many else message
        # Null is a value of these, not their absence.
        self.takes_null = getattr(element, "type_name", "") in _NULLS
        self.is_string = element is ScalarType.STRING and not self.many

    def of(self, message: Any) -> Any:
        """Give its value in a message; members of a oneof are no attributes."""
        if self.oneof is None:
            return getattr(message, self.desc.local_name)
        return message[self.desc]

    def items(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Give each single value in a field's JSON, with what its path adds."""
        if self.many is list and isinstance(value, list):
            yield from ((f"[{index}]", item) for index, item in enumerate(value))
        elif self.many is dict and isinstance(value, dict):
            yield from ((f"[{json.dumps(key)}]", item) for key, item in value.items())
        elif not self.many:
            yield "", value


@dataclass(frozen=True, slots=True)
class Parameter:
    """A request field that text can fill, by the way that leads to it."""

    fields: tuple[Field, ...]
    names: tuple[str, ...]  # of JSON, one a level
    path: str  # the same, as errors tell it
    read: Callable[[str], Any]  # text -> JSON value; None: it is not one

    @property
    def last(self) -> Field:
        """The field itself."""
        return self.fields[-1]

    @property
    def oneofs(self) -> Iterator[tuple[int, DescOneof]]:
        """The oneofs that it takes, with the level they stand on."""
        for level, field in enumerate(self.fields):
            if field.oneof is not None:
                yield level, field.oneof


def resolve(shape: Shape, path: str) -> Parameter:
    """Give the field that a dotted path of proto or JSON names leads to.

    Raises FieldPathError if there is none, if the path goes through a list, a
    map or a scalar, or if the field's type has no form in text (http.proto).
    """
    fields: list[Field] = []
    names = path.split(".")
    if len(names) > DEPTH_LIMIT:
        raise FieldPathError("the path is too long")
    at: Shape | None = shape
    for name in names:
        if at is None or at.special:
            raise FieldPathError("the path goes through what is not a message")
        if name not in at.named:
            raise FieldPathError("there is no such field")
        fields.append(at.named[name])
        at = fields[-1].message
    if fields[-1].many is dict:
        raise FieldPathError("a map cannot be given as text")
    read = fields[-1].kind.read
    if read is None:
        raise FieldPathError("a message cannot be given as text")
    named = tuple(field.json_name for field in fields)
    return Parameter(tuple(fields), named, ".".join(named), read)


def find_string(shape: Shape | None, path: str) -> Parameter | None:
    """Give a field by path if it is one string, else None."""
    try:
        found = resolve(shape, path) if shape else None
    except FieldPathError:
        return None
    return found if found and found.last.is_string else None
