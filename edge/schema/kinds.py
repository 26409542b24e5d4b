"""Field types: what a value must be, how text is parsed, and the JSON Schema."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protobuf import DescEnum, DescMessage, ScalarType

Schema = dict[str, Any]
Element = ScalarType | DescEnum | DescMessage
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
_FLOAT32_LIMIT = (2 - 2**-24) * 2.0**127  # smaller values round to FLOAT32_MAX
# One spelling of each integer, so that a cache or a filter in front sees one resource.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")
_NUMBER = re.compile(
    r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|NaN|-?Infinity"
)
_UNDERSCORE_LETTER = re.compile(r"_([a-z])")
MAX_LISTED_NAMES = 20  # enum values in one error message


@dataclass(frozen=True, slots=True)
class Kind:
    """The values of one field type."""

    requirement: str  # what a value must be; never repeats the client's input
    read: Callable[[str], Any] | None = None  # text -> JSON value, None if invalid
    schema: Schema | None = None  # None: an object with fields


def _integer(low: int, high: int) -> Kind:
    """Return the kind of decimal integers from `low` to `high`.

    64-bit integers are JSON strings in requests and responses alike, as ProtoJSON
    writes them: JavaScript's numbers are exact to 53 bits only.
    """

    def read(text: str) -> str | None:
        valid = _INTEGER.fullmatch(text) and low <= int(text) <= high
        return text if valid else None

    bits = 32 if high < 2**32 else 64
    name = f"int{bits}" if low else f"uint{bits}"
    schema: Schema = {"type": "integer", "format": name, "minimum": low}
    schema["maximum"] = high
    if bits == 64:
        pattern = "^(0|-?[1-9][0-9]*)$" if low else "^(0|[1-9][0-9]*)$"
        schema = {"type": "string", "format": name, "pattern": pattern}
    return Kind(f"must be an integer from {low} to {high}", read, schema)


def rounded(value: Any) -> Any:
    """Return FLOAT32_MAX for a larger value that rounds to it, else the value.

    Other implementations print FLOAT32_MAX as 3.4028235e+38.
    """
    try:
        above_max = FLOAT32_MAX < abs(float(value)) < _FLOAT32_LIMIT
    except (OverflowError, TypeError, ValueError):
        return value
    return math.copysign(FLOAT32_MAX, float(value)) if above_max else value


def _number(
    requirement: str, width: str, convert: Callable[[Any], Any] = lambda text: text
) -> Kind:
    def read(text: str) -> Any:
        return convert(text) if _NUMBER.fullmatch(text) else None

    return Kind(requirement, read, {"type": "number", "format": width})


def _enum(enum: DescEnum) -> Kind:
    """Return the kind of an enum, whose text is a name or a known number.

    The schema has names only, so that generated clients have one type for it.
    JSON bodies may also hold numbers, as ProtoJSON allows.
    """
    names = [value.name for value in enum.values]
    by_text = {str(value.number): value.name for value in enum.values}
    by_text |= {name: name for name in names}
    schema: Schema = {"type": "string", "enum": names}
    if enum.type_name == NULL_VALUE:
        schema = {"type": "null"}
    listed = ", ".join(names[:MAX_LISTED_NAMES])
    return Kind(f"must be one of {listed}", by_text.get, schema)


def _camel_case(mask: str) -> str:
    """Convert proto names, which gRPC clients use in a mask, to JSON names."""
    return _UNDERSCORE_LETTER.sub(lambda match: match[1].upper(), mask)


_TEXT: Schema = {"type": "string"}
_BOOLEANS = {"true": True, "false": False}
_KINDS = (
    ("BOOL", Kind("must be true or false", _BOOLEANS.get, {"type": "boolean"})),
    ("INT32 SINT32 SFIXED32", _integer(-(2**31), 2**31 - 1)),
    ("INT64 SINT64 SFIXED64", _integer(-(2**63), 2**63 - 1)),
    ("UINT32 FIXED32", _integer(0, 2**32 - 1)),
    ("UINT64 FIXED64", _integer(0, 2**64 - 1)),
    ("FLOAT", _number("must be a number in the range of float32", "float", rounded)),
    ("DOUBLE", _number("must be a number", "double")),
    ("STRING", Kind("must be a string", str, _TEXT)),
    ("BYTES", Kind("must be base64", str, _TEXT | {"contentEncoding": "base64"})),
)
_SCALARS = {ScalarType[name]: kind for names, kind in _KINDS for name in names.split()}
FLOAT = _SCALARS[ScalarType.FLOAT]
_OBJECT = Kind("must be an object")
_JSON_NAME = "[a-z][A-Za-z]*"
_MASK_PATH = rf"{_JSON_NAME}(\.{_JSON_NAME})*"
_MASK = _TEXT | {"pattern": f"^({_MASK_PATH}(,{_MASK_PATH})*)?$"}
_ANY = {"type": "object", "properties": {"@type": _TEXT}, "required": ["@type"]}
# Messages whose JSON is not an object of their fields.
_WELL_KNOWN = {
    "Timestamp": Kind(
        "must be an RFC 3339 time such as 2024-01-31T09:30:00Z",
        str,
        _TEXT | {"format": "date-time"},
    ),
    "Duration": Kind(
        "must be a duration in seconds such as 1.5s",
        str,
        _TEXT | {"pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    ),
    "FieldMask": Kind(
        "must be field paths in lowerCamelCase, separated by commas", _camel_case, _MASK
    ),
    "Any": Kind("must be an object whose @type names a known type", None, _ANY),
    "Struct": Kind(_OBJECT.requirement, None, {"type": "object"}),
    "Value": Kind("must be a JSON value", None, {}),
    "ListValue": Kind("must be a list", None, {"type": "array", "items": {}}),
}
_WRAPPERS = (
    *("Bool", "Int32", "Int64", "UInt32", "UInt64"),
    *("Float", "Double", "String", "Bytes"),
)
_MESSAGES = {
    **{f"google.protobuf.{name}": kind for name, kind in _WELL_KNOWN.items()},
    **{f"google.protobuf.{n}Value": _SCALARS[ScalarType[n.upper()]] for n in _WRAPPERS},
}
ANY = "google.protobuf.Any"
NULL_VALUE = "google.protobuf.NullValue"
VALUE = "google.protobuf.Value"


def kind_of(element: Element) -> Kind:
    """Return the kind of a field type."""
    if isinstance(element, ScalarType):
        return _SCALARS[element]
    if isinstance(element, DescEnum):
        return _enum(element)
    return _MESSAGES.get(element.type_name, _OBJECT)


def is_well_known(desc: DescMessage) -> bool:
    """Return whether a message's JSON is something else than an object of fields."""
    return desc.type_name in _MESSAGES
