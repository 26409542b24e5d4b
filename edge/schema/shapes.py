"""The fields of message types, by every name that JSON may give them."""

from collections.abc import Mapping
from dataclasses import dataclass

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
from protobuf.wkt.google.protobuf import descriptor_pb

WELL_KNOWN = "google.protobuf."
_IMPLICIT = descriptor_pb.FeatureSet.FieldPresence.IMPLICIT
WRAPPERS: Mapping[str, ScalarType] = {
    f"{WELL_KNOWN}{name}Value": scalar
    for name, scalar in {
        "Bool": ScalarType.BOOL,
        "Int32": ScalarType.INT32,
        "Int64": ScalarType.INT64,
        "UInt32": ScalarType.UINT32,
        "UInt64": ScalarType.UINT64,
        "Float": ScalarType.FLOAT,
        "Double": ScalarType.DOUBLE,
        "String": ScalarType.STRING,
        "Bytes": ScalarType.BYTES,
    }.items()
}
TEXTUAL = frozenset(f"{WELL_KNOWN}{n}" for n in ("Timestamp", "Duration", "FieldMask"))
OPAQUE = frozenset(f"{WELL_KNOWN}{n}" for n in ("Struct", "Value", "ListValue", "Any"))
SPECIAL = frozenset(WRAPPERS) | TEXTUAL | OPAQUE  # not written as objects of fields

Element = ScalarType | DescEnum | DescMessage
# What the native codec raises on input that is not of the type.
BAD_INPUT = (ValueError, TypeError, OverflowError, RecursionError)


def is_list(field: DescField) -> bool:
    """Tell whether the field is repeated (a map is not)."""
    return isinstance(field.value, DescFieldValueList)


def has_presence(field: DescField) -> bool:
    """Tell whether an absent field differs from one that holds its zero value."""
    return int(field.presence) != int(_IMPLICIT)


def is_map(field: DescField) -> bool:
    """Tell whether the field is a map."""
    return isinstance(field.value, DescFieldValueMap)


def element_of(field: DescField) -> Element:
    """Give the type of a field's value, or of its list's or map's values."""
    match field.value:
        case DescFieldValueScalar(scalar=scalar):
            return scalar
        case DescFieldValueEnum(enum=enum):
            return enum
        case DescFieldValueMessage(message=message):
            return message
        case DescFieldValueList(element=element):
            return element
        case DescFieldValueMap(value=value):
            return value


def message_of(field: DescField) -> DescMessage | None:
    """Give the message type of a field that is one message, else None."""
    value = field.value
    return value.message if isinstance(value, DescFieldValueMessage) else None


def oneof_of(field: DescField) -> DescOneof | None:
    """Give the oneof that a field is a member of, `optional` fields aside."""
    value = field.value
    return (
        None
        if isinstance(value, DescFieldValueList | DescFieldValueMap)
        else (value.oneof)
    )


@dataclass(slots=True)
class Key:
    """A field as a JSON key finds it."""

    field: DescField
    json_name: str
    oneof: DescOneof | None
    takes_null: bool  # null is a value of it, not its absence
    nested: "Shape | None"  # of a message written as an object of fields
    many: bool  # a list or a map of `nested`


class Shape:
    """A message type by the keys that its JSON may have, in both spellings."""

    def __init__(self, desc: DescMessage) -> None:
        self.desc = desc
        self.type = desc.type
        self.keys: dict[str, Key] = {}

    def field(self, name: str) -> DescField | None:
        """Give a field by its proto or JSON name."""
        key = self.keys.get(name)
        return key.field if key else None

    @property
    def special(self) -> bool:
        """Whether the type's JSON is not an object of its fields."""
        return self.desc.type_name in SPECIAL


_INTEGERS: Mapping[ScalarType, tuple[int, int]] = {
    **dict.fromkeys(
        (ScalarType.INT32, ScalarType.SINT32, ScalarType.SFIXED32),
        (-(2**31), 2**31 - 1),
    ),
    **dict.fromkeys(
        (ScalarType.INT64, ScalarType.SINT64, ScalarType.SFIXED64),
        (-(2**63), 2**63 - 1),
    ),
    **dict.fromkeys((ScalarType.UINT32, ScalarType.FIXED32), (0, 2**32 - 1)),
    **dict.fromkeys((ScalarType.UINT64, ScalarType.FIXED64), (0, 2**64 - 1)),
}
_OTHERS: Mapping[object, str] = {
    ScalarType.BOOL: "must be true or false",
    ScalarType.STRING: "must be a string",
    ScalarType.BYTES: "must be bytes in base64",
    ScalarType.FLOAT: "must be a number that a float32 can hold",
    ScalarType.DOUBLE: "must be a number",
    f"{WELL_KNOWN}Timestamp": "must be an RFC 3339 time such as 2024-01-31T09:30:00Z",
    f"{WELL_KNOWN}Duration": "must be a time in seconds such as 1.5s",
    f"{WELL_KNOWN}FieldMask": "must be field paths in lowerCamelCase, with commas",
    f"{WELL_KNOWN}Any": "must be an object whose @type names a known type",
    f"{WELL_KNOWN}ListValue": "must be a list",
}


def integer_range(element: Element) -> tuple[int, int] | None:
    """Give the least and greatest value of an integer type, None for others."""
    return _INTEGERS.get(element) if isinstance(element, ScalarType) else None


def expectation(element: Element) -> str:
    """Say what a value of the type must be; it echoes nothing of what was sent."""
    if isinstance(element, DescEnum):
        names = ", ".join(value.name for value in element.values[:20])
        return f"must be one of {names}"
    bounds = integer_range(element)
    if bounds:
        return f"must be an integer from {bounds[0]} to {bounds[1]}"
    if isinstance(element, ScalarType):
        return _OTHERS[element]
    if element.type_name in WRAPPERS:
        return expectation(WRAPPERS[element.type_name])
    return _OTHERS.get(element.type_name, "must be an object")
