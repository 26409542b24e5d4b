"""Message types by their field names, and the field paths that text can set.

The only place that reads message descriptors: the parsing of JSON and of text, and
the JSON Schemas, use these tables.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from protobuf import (
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

from edge.schema.kinds import (
    ANY,
    FLOAT,
    NULL_VALUE,
    VALUE,
    Element,
    is_well_known,
    kind_of,
)

MAX_PATH_DEPTH = 32  # names in a field path; the codec nests up to 100 messages
_TEXT_KEYS = (ScalarType.STRING, ScalarType.BOOL)  # other map keys are integers
_NULLABLE = (VALUE, NULL_VALUE)


class FieldPathError(ValueError):
    """A path that leads to no field which text can set; the message says why."""


class Shape:
    """A message type with its fields by name, in proto and JSON spelling."""

    def __init__(self, desc: DescMessage, known: dict[str, "Shape"]) -> None:
        known[desc.type_name] = self  # before the fields: types may be recursive
        self.desc = desc
        self.name = desc.type_name
        self.type = desc.type
        self.kind = kind_of(desc)
        self.special = is_well_known(desc)
        self.fields = [Field(field, known) for field in desc.fields]
        self.named: dict[str, Field] = {}
        for field in self.fields:
            self.named[field.name] = self.named[field.json_name] = field

    @cached_property
    def has_floats(self) -> bool:
        """Whether a message of this type may contain a `float` at any depth."""
        reachable: dict[str, Shape] = {}
        Shape(self.desc, reachable)
        return any(
            shape.kind is FLOAT
            or shape.name == ANY
            or any(field.kind is FLOAT for field in shape.fields)
            for shape in reachable.values()
        )


def shape_of(desc: DescMessage, known: dict[str, Shape]) -> Shape:
    """Return the shape of a message type; `known` holds one per type."""
    return known.get(desc.type_name) or Shape(desc, known)


class Field:
    """A field and the JSON values that it may have."""

    def __init__(self, desc: DescField, known: dict[str, Shape]) -> None:
        self.desc = desc
        self.name = desc.name
        self.json_name = desc.json_name
        self.many: type[list[Any]] | type[dict[str, Any]] | None = None
        self.oneof: DescOneof | None = None
        self.integer_keys = False  # of a map
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
                self.integer_keys = desc.value.key not in _TEXT_KEYS
        self.element: Element = element
        self.kind = kind_of(element)
        shape = shape_of(element, known) if isinstance(element, DescMessage) else None
        self.typed = shape  # of one value, also within a list or a map
        self.nested = None if shape is None or shape.special else shape
        self.message = None if self.many else shape
        # JSON null is a value of these types, not an absent field.
        self.takes_null = getattr(element, "type_name", "") in _NULLABLE
        self.is_string = element is ScalarType.STRING and not self.many

    def of(self, message: Any) -> Any:
        """Return the field's value in a message; oneof members are no attributes."""
        if self.oneof is None:
            return getattr(message, self.desc.local_name)
        return message[self.desc]

    def items(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield each element of a field's JSON with its path below the field."""
        if self.many is list and isinstance(value, list):
            yield from ((f"[{index}]", item) for index, item in enumerate(value))
        elif self.many is dict and isinstance(value, dict):
            yield from ((f"[{json.dumps(key)}]", item) for key, item in value.items())
        elif not self.many:
            yield "", value


@dataclass(frozen=True, slots=True)
class Parameter:
    """A request field that text can set, with the path to it."""

    fields: tuple[Field, ...]
    names: tuple[str, ...]  # JSON names, one a level
    path: str  # the JSON names joined by dots, as errors name it
    read: Callable[[str], Any]  # text -> JSON value, None if invalid
    last: Field  # the field itself

    @property
    def oneofs(self) -> Iterator[tuple[int, DescOneof]]:
        """The oneofs on the path, each with its level."""
        for level, field in enumerate(self.fields):
            if field.oneof is not None:
                yield level, field.oneof


def resolve(shape: Shape, path: str) -> Parameter:
    """Return the field at a dotted path of proto or JSON names.

    Raises FieldPathError if there is no such field, if the path goes through a
    list, a map or a scalar, or if the field's type has no text form (http.proto).
    """
    fields: list[Field] = []
    names = path.split(".")
    if len(names) > MAX_PATH_DEPTH:
        raise FieldPathError(f"a field path must have at most {MAX_PATH_DEPTH} names")
    parent: Shape | None = shape
    for name in names:
        if parent is None or parent.special:
            owner = fields[-1].name if fields else shape.name
            raise FieldPathError(
                f"{owner} is not a message and has no fields of its own: "
                "remove the names after it"
            )
        if name not in parent.named:
            raise FieldPathError("there is no such field")
        fields.append(parent.named[name])
        parent = fields[-1].message
    if fields[-1].many is dict:
        raise FieldPathError("a map cannot be set from a path or query parameter")
    read = fields[-1].kind.read
    if read is None:
        raise FieldPathError(
            "a message cannot be set from a path or query parameter: "
            "set its fields instead"
        )
    json_names = tuple(field.json_name for field in fields)
    path = ".".join(json_names)
    return Parameter(tuple(fields), json_names, path, read, fields[-1])


def find_string(shape: Shape | None, path: str) -> Parameter | None:
    """Return the field at a path if it is one string, else None."""
    try:
        parameter = resolve(shape, path) if shape else None
    except FieldPathError:
        return None
    return parameter if parameter and parameter.last.is_string else None
