"""Message types and their buf.validate rules -> JSON Schema."""

import re
from itertools import combinations
from typing import Any

from protobuf import (
    DescEnum,
    DescField,
    DescMessage,
    DescMethod,
    DescService,
    Message,
    Registry,
    ScalarType,
)
from protobuf.plugin import get_comments
from protobuf.wkt.google.protobuf.descriptor_pb import FeatureSet

from edge.schema.fields import Field, Kind, Schema, Shape, kind_of

_STRING = kind_of(ScalarType.STRING)
_IGNORE_ZERO, _IGNORE_ALWAYS = 1, 3  # buf.validate.Ignore
_NULL = {"type": "null"}
_OUTPUT_ONLY = 3  # google.api.FieldBehavior
_NUMBER = {"gt": "exclusiveMinimum", "gte": "minimum"}
_NUMBER |= {"lt": "exclusiveMaximum", "lte": "maximum"}
_LIST = {"min_items": "minItems", "max_items": "maxItems", "unique": "uniqueItems"}
_NAMES: dict[str, dict[str, str]] = {
    "string": {"min_len": "minLength", "max_len": "maxLength", "pattern": "pattern"},
    "repeated": _LIST,
    "map": {"min_pairs": "minProperties", "max_pairs": "maxProperties"},
    "bytes": {},
    "enum": {},
}
_FORMATS = {name: name for name in ("email", "hostname", "ipv4", "ipv6", "uri", "uuid")}
_FORMATS["uri_ref"] = "uri-reference"
_MATCHES = re.compile(r"""this\.matches\((r?)(['"])(.*)\2\)""", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)")
Rules = dict[str, Any]  # what is set of a rule message, by name


def comment(desc: DescField | DescMessage | DescMethod | DescService) -> str:
    """Give what the proto file says at a descriptor, "" without source information."""
    found = get_comments(desc)
    text = (found.leading or found.trailing or "").strip()
    return "\n".join(line.removeprefix(" ") for line in text.split("\n")).strip()


class Schemas:
    """Gives schemas; messages become components, for requests and for answers apart."""

    def __init__(self, registry: Registry, text_pattern: str) -> None:
        self._text_pattern = text_pattern
        self._extension = registry.extension("buf.validate.field")
        self._behavior = registry.extension("google.api.field_behavior")
        self.components: dict[str, Schema] = {}

    def field(self, field: Field, *, request: bool) -> Schema:
        """Give the schema of a field, its rules and its comment with it."""
        schema = _of_kind(field.kind, request=request)
        if request and self._text_pattern and field.kind is _STRING:
            schema["pattern"] = self._text_pattern  # a field's own one is closer
        if field.nested:
            schema = self.message(field.nested, request=request)
        if field.many is list:
            schema = {"type": "array", "items": schema}
        elif field.many is dict:
            schema = {"type": "object", "additionalProperties": schema}
        if request:
            schema = self._ruled(schema, field)
        told = comment(field.desc)
        return {**schema, "description": told} if told else schema

    def message(self, shape: Shape, *, request: bool) -> Schema:
        """Give a reference to a message's component, or the schema of a special one."""
        if shape.special:
            return _of_kind(shape.kind, request=request)
        name = f"{shape.name}.Input" if request else shape.name
        if name not in self.components:
            self.components[name] = {}  # stands already where it refers to itself
            self.components[name] = self._object(shape, request=request)
        return {"$ref": f"#/components/schemas/{name}"}

    def resolved(self, schema: Schema) -> Schema:
        """Give what a reference to a component refers to, or the schema itself."""
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        return self.components.get(name, schema)

    def _object(self, shape: Shape, *, request: bool) -> Schema:
        held = [f for f in shape.fields if not (request and self.is_output(f))]
        needed = [f for f in held if self.is_needed(f, request=request)]
        fields = {f.json_name: self.field(f, request=request) for f in held}
        if request:  # ProtoJSON: null is absence
            rest = [field.json_name for field in held if field not in needed]
            fields |= {name: _or_null(fields[name]) for name in rest}
        schema: Schema = {"type": "object", "properties": fields}
        if needed:
            schema["required"] = [field.json_name for field in needed]
        if request:
            schema["additionalProperties"] = False
            pairs = [
                {"required": [one.json_name, other.json_name]}
                for oneof in shape.desc.oneofs
                for one, other in combinations(oneof.fields, 2)
            ]
            if pairs:
                schema["not"] = {"anyOf": pairs}
        told = comment(shape.desc)
        return {**schema, "description": told} if told else schema

    def is_output(self, field: Field) -> bool:
        """Tell whether only answers have a field (AIP-203)."""
        options, extension = field.desc.proto.options, self._behavior
        if extension is None or options is None or extension.type not in options:
            return False
        return _OUTPUT_ONLY in options[extension.type]

    def is_needed(self, field: Field, *, request: bool) -> bool:
        """Tell whether a field must be there; in answers, whether it always is.

        A field without presence is checked as its zero value where it is absent.
        """
        implicit = int(field.desc.presence) == int(FeatureSet.FieldPresence.IMPLICIT)
        rules = self._rules(field)
        if not request or rules.get("required"):
            return implicit or request
        if not implicit or rules.get("ignore"):
            return False
        schema = _constrained({}, rules, field)
        return any(_refuses_zero(part) for part in (schema, *schema.get("allOf", ())))

    def _rules(self, field: Field) -> Rules:
        """Give a field's rules by name: `string`, `required`, `cel`, `ignore`, ..."""
        options = field.desc.proto.options
        extension = self._extension
        if extension is None or options is None or extension.type not in options:
            return {}
        rules = _held(options[extension.type])
        return {} if rules.get("ignore") == _IGNORE_ALWAYS else rules

    def _ruled(self, schema: Schema, field: Field) -> Schema:
        rules = self._rules(field)
        made = _constrained(schema, rules, field)
        if rules.get("ignore") == _IGNORE_ZERO and schema.get("type") == "string":
            return {"anyOf": [{"const": ""}, made]} if made != schema else made
        return made


def _or_null(schema: Schema) -> Schema:
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], _NULL]}
    if "type" not in schema:  # a reference to a component
        told = {name: schema[name] for name in ("description",) if name in schema}
        bare = {name: value for name, value in schema.items() if name not in told}
        return {"anyOf": [bare, _NULL], **told} if bare else schema
    made = schema | {"type": [schema["type"], "null"]}
    return made | {"enum": [*schema["enum"], None]} if "enum" in schema else made


def _of_kind(kind: Kind, *, request: bool) -> Schema:
    sent = kind.asked if kind.sent is None else kind.sent
    return dict((kind.asked if request else sent) or {})


def _held(message: Any) -> Rules:
    """Give the fields that are set, by name."""
    return {f.name: message[f] for f in message.desc().fields if f in message}


def _refuses_zero(schema: Schema) -> bool:
    least = max(
        schema.get(name, 0)
        for name in ("minLength", "minItems", "minProperties", "minimum")
    )
    return (
        least > 0
        or schema.get("exclusiveMinimum", -1) >= 0
        or schema.get("maximum", 0) < 0
        or schema.get("exclusiveMaximum", 1) <= 0
        or all(schema.get("enum", [0]))
        or "format" in schema
        or not re.search(schema.get("pattern", ""), "")
    )


def _constrained(schema: Schema, rules: Rules, field: Field) -> Schema:
    made = dict(schema)
    patterns = _cel_patterns(rules)
    for kind, message in rules.items():
        if isinstance(message, Message):
            _apply(made, kind, _held(message), field)
    if "pattern" in made and patterns and made["pattern"] != schema.get("pattern"):
        patterns.append(made.pop("pattern"))
    if len(patterns) == 1:
        made["pattern"] = patterns[0]
    elif patterns:
        made["allOf"] = [{"pattern": pattern} for pattern in patterns]
    return made


def _apply(made: Schema, kind: str, rules: Rules, field: Field) -> None:
    """Write one typed rule message, such as StringRules, into a schema."""
    names = _NAMES.get(kind, _NUMBER)
    listed = names is _NUMBER or kind in ("string", "enum")
    for name, value in rules.items():
        if name in names and isinstance(value, int | float | str):
            made[names[name]] = value
        elif name in _FORMATS and value is True:
            made["format"] = _FORMATS[name]
        elif name == "len" and kind == "string":
            made["minLength"] = made["maxLength"] = value
        elif name in ("in", "const") and listed:
            made["enum"] = _values(value if name == "in" else [value], field)
        elif name == "items" and "items" in made:
            made["items"] = _constrained(made["items"], _held(value), field)


def _values(values: list[Any], field: Field) -> list[Any]:
    if not isinstance(field.element, DescEnum):
        return list(values)
    names = {value.number: value.name for value in field.element.values}
    return [names.get(int(value), int(value)) for value in values]


def _cel_patterns(rules: Rules) -> list[str]:
    """Give the regular expressions of rules that only match one (CEL `matches`)."""
    written = [rule.expression or "" for rule in rules.get("cel", ())]
    matches = [
        _MATCHES.fullmatch(expression.strip())
        for expression in (*written, *rules.get("cel_expression", ()))
    ]
    return [m[3] if m[1] else _ESCAPE.sub(r"\1", m[3]) for m in matches if m]
