"""The one mapper from message types to JSON Schema, for parameters and bodies."""

from typing import Any

from protobuf import (
    DescEnum,
    DescField,
    DescMessage,
    DescOneof,
    ScalarType,
)

from edge.schema.rules import Rules
from edge.schema.shapes import (
    SPECIAL,
    WELL_KNOWN,
    WRAPPERS,
    Element,
    element_of,
    has_presence,
    integer_range,
    is_list,
    is_map,
)

Schema = dict[str, Any]
_BITS_64 = 2**32 - 1
_NOT_NUMBERS = ["NaN", "Infinity", "-Infinity"]
_TEXTS: dict[str, Schema] = {
    "Timestamp": {"type": "string", "format": "date-time"},
    "Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "FieldMask": {"type": "string", "description": "Field paths, with commas."},
    "Struct": {"type": "object"},
    "Value": {},
    "ListValue": {"type": "array"},
    "Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "required": ["@type"],
    },
}
_SPECIAL = {f"{WELL_KNOWN}{name}": schema for name, schema in _TEXTS.items()}


class TypeMapper:
    """Gives schemas; messages become components, for requests and for answers apart.

    Requests take a 64-bit integer as a number, so that its bounds can be said;
    answers write it as a string, as ProtoJSON does.
    """

    def __init__(self, rules: Rules, comments: dict[str, str]) -> None:
        self._rules = rules
        self._comments = comments
        self.components: dict[str, Schema] = {}

    def field(self, field: DescField, *, request: bool) -> Schema:
        """Give the schema of a field, its rules and its comment with it."""
        schema = self.element(element_of(field), request=request)
        if is_list(field):
            schema = {"type": "array", "items": schema}
        elif is_map(field):
            schema = {"type": "object", "additionalProperties": schema}
        if request:
            schema = self._rules.constrain(schema, field)
        told = self._comments.get(f"{field.parent.type_name}.{field.name}")
        return {**schema, "description": told} if told else schema

    def element(self, element: Element, *, request: bool) -> Schema:
        """Give the schema of a type."""
        if isinstance(element, DescEnum):
            return _enum(element, request=request)
        if isinstance(element, ScalarType):
            return _scalar(element, request=request)
        if element.type_name in WRAPPERS:
            return _scalar(WRAPPERS[element.type_name], request=request)
        if element.type_name in SPECIAL:
            return dict(_SPECIAL[element.type_name])
        return self._reference(element, request=request)

    def _reference(self, message: DescMessage, *, request: bool) -> Schema:
        name = f"{message.type_name}.Input" if request else message.type_name
        if name not in self.components:
            self.components[name] = {}  # stands already where it refers to itself
            self.components[name] = self._object(message, request=request)
        return {"$ref": f"#/components/schemas/{name}"}

    def resolved(self, schema: Schema) -> Schema:
        """Give what a reference to a component refers to, or the schema itself."""
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        return self.components.get(name, schema)

    def _object(self, message: DescMessage, *, request: bool) -> Schema:
        schema: Schema = {
            "type": "object",
            "properties": {
                field.json_name: self.field(field, request=request)
                for field in message.fields
            },
        }
        needed = [f for f in message.fields if self.is_needed(f, request=request)]
        if needed:
            schema["required"] = [field.json_name for field in needed]
        if request:
            schema["additionalProperties"] = False
        pairs = [pair for oneof in message.oneofs for pair in _pairs(oneof)]
        if request and pairs:
            schema["not"] = {"anyOf": pairs}
        told = self._comments.get(message.type_name)
        return {**schema, "description": told} if told else schema

    def is_needed(self, field: DescField, *, request: bool) -> bool:
        """Tell whether a field must be there; in answers, whether it always is."""
        if request:
            return self._rules.is_required(field)
        return not has_presence(field)


def _pairs(oneof: DescOneof) -> list[Schema]:
    names = [field.json_name for field in oneof.fields]
    return [
        {"required": [one, other]}
        for at, one in enumerate(names)
        for other in names[at + 1 :]
    ]


def _enum(enum: DescEnum, *, request: bool) -> Schema:
    if enum.type_name == f"{WELL_KNOWN}NullValue":
        return {"type": "null"}
    names = [value.name for value in enum.values]
    if request or not enum.open:
        return {"type": "string", "enum": names}
    return {"anyOf": [{"type": "string", "enum": names}, {"type": "integer"}]}


def _scalar(scalar: ScalarType, *, request: bool) -> Schema:
    bounds = integer_range(scalar)
    if bounds and (request or bounds[1] <= _BITS_64):
        size = "int32" if bounds[1] <= _BITS_64 else "int64"
        low, high = bounds
        return {"type": "integer", "format": size, "minimum": low, "maximum": high}
    if bounds:
        return {"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"}
    if scalar in (ScalarType.FLOAT, ScalarType.DOUBLE):
        number = {"type": "number"}
        return number if request else {"anyOf": [number, {"enum": _NOT_NUMBERS}]}
    if scalar is ScalarType.BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    return {"type": "boolean" if scalar is ScalarType.BOOL else "string"}
