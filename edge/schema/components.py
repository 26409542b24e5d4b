"""Message and enum types -> the schema components of an OpenAPI document."""

import re
from collections.abc import Collection
from itertools import chain, combinations, count

from protobuf import (
    DescEnum,
    DescEnumValue,
    DescField,
    DescMessage,
    DescMethod,
    DescOneof,
    DescService,
    Registry,
    ScalarType,
)
from protobuf.plugin import get_comments
from protobuf.wkt.google.protobuf.descriptor_pb import FeatureSet

from edge.schema.fields import Field, Shape
from edge.schema.kinds import NULL_VALUE, Schema, kind_of
from edge.schema.rules import (
    IGNORE_ALWAYS,
    Rules,
    constrained,
    refuses_zero,
    set_fields,
)

_STRING = kind_of(ScalarType.STRING)
_OUTPUT_ONLY = 3  # google.api.FieldBehavior
_LINE_BREAK = re.compile(r"(?<=\S)\n(?=[^\s*#>-])")
Described = (
    DescEnum | DescEnumValue | DescField | DescMessage | DescMethod | DescService
)


def comment(desc: Described) -> str:
    """Return the comment of a descriptor with one line for each paragraph.

    It is "" if the descriptor set has no source information.
    """
    comments = get_comments(desc)
    text = (comments.leading or comments.trailing or "").strip()
    lines = (line.removeprefix(" ").rstrip() for line in text.split("\n"))
    return _LINE_BREAK.sub(" ", "\n".join(lines)).strip()


class Schemas:
    """The schemas of one document.

    Messages and enums become components. A message has two of them where it is both
    sent and received, because requests have rules and no output-only fields.
    """

    def __init__(self, registry: Registry, text_pattern: str) -> None:
        self._text_pattern = text_pattern
        self._rules_extension = registry.extension("buf.validate.field")
        self._oneof_rules = registry.extension("buf.validate.oneof")
        self._behavior = registry.extension("google.api.field_behavior")
        self._names: dict[str, tuple[str, bool]] = {"ErrorResponse": ("", False)}
        self.components: dict[str, Schema] = {}

    def field(self, field: Field, *, request: bool) -> Schema:
        """Return the schema of a field with its rules and its comment."""
        schema = self._element(field, request=request)
        if field.many is list:
            schema = {"type": "array", "items": schema}
        elif field.many is dict:
            schema = {"type": "object", "additionalProperties": schema}
        if request:
            schema = constrained(schema, self._rules(field), field)
            if {"format", "enum"} & set(schema) and self._has_text_pattern(schema):
                del schema["pattern"]  # the format or the enum is stricter
        text = " ".join(filter(None, (comment(field.desc), schema.get("description"))))
        return {**schema, "description": text} if text else schema

    def _element(self, field: Field, *, request: bool) -> Schema:
        if field.nested:
            return self.message(field.nested, request=request)
        if isinstance(field.element, DescEnum):
            return self._enum(field.element)
        schema = dict(field.kind.schema or {})
        if request and self._text_pattern and field.kind is _STRING:
            schema["pattern"] = self._text_pattern  # unless the field has its own
        return schema

    def _has_text_pattern(self, schema: Schema) -> bool:
        return schema.get("pattern") == self._text_pattern

    def _enum(self, desc: DescEnum) -> Schema:
        schema = dict(kind_of(desc).schema or {})
        if desc.type_name == NULL_VALUE:
            return schema
        name = self._name(desc.type_name, request=False)
        values = "\n".join(
            f"- `{value.name}`: {text}"
            for value in desc.values
            if (text := comment(value))
        )
        text = "\n\n".join(filter(None, (comment(desc), values)))
        self.components[name] = {**schema, "description": text} if text else schema
        return {"$ref": f"#/components/schemas/{name}"}

    def message(self, shape: Shape, *, request: bool) -> Schema:
        """Return a reference to a component, or the schema of a well-known type."""
        if shape.special:
            return dict(shape.kind.schema or {})
        name = self._name(shape.name, request=request)
        if name not in self.components:
            self.components[name] = {}  # types may be recursive
            self.components[name] = self._object(shape, (), request=request)
        return {"$ref": f"#/components/schemas/{name}"}

    def body_without(self, shape: Shape, omitted: Collection[str], name: str) -> Schema:
        """Return a reference to a request component without some fields, by JSON name.

        `name` is the component's, unless another one has it.
        """
        name = self._name(name, request=True)
        self.components[name] = self._object(shape, omitted, request=True)
        return {"$ref": f"#/components/schemas/{name}"}

    def resolved(self, schema: Schema) -> Schema:
        """Return the component that a reference points to, or the schema itself."""
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        return self.components.get(name, schema)

    def _name(self, type_name: str, *, request: bool) -> str:
        """Return a component's name: the short name of its type, if it is free."""
        key = (type_name, request)
        short = type_name
        parts = type_name.split(".")
        for index, part in enumerate(parts):
            if part[:1].isupper():  # the package ends here
                short = "".join(parts[index:])
                break
        suffix = "Input" if request and not short.endswith(("Request", "Body")) else ""
        numbered = (f"{type_name}.{number}" for number in count(2))
        names = chain((short + suffix, type_name + suffix), numbered)
        return next(name for name in names if self._names.setdefault(name, key) == key)

    def _object(
        self, shape: Shape, omitted: Collection[str], *, request: bool
    ) -> Schema:
        fields = [
            field
            for field in shape.fields
            if not (request and (self.is_output(field) or field.json_name in omitted))
        ]
        properties = {f.json_name: self.field(f, request=request) for f in fields}
        required = [f.json_name for f in fields if self.is_required(f, request=request)]
        schema: Schema = {"type": "object", "properties": properties}
        if required:
            schema["required"] = required
        if request:
            schema["additionalProperties"] = False
            excluded: list[Schema] = [
                {"required": [field.json_name, other.json_name]}
                for oneof in shape.desc.oneofs
                for field, other in combinations(oneof.fields, 2)
            ]
            for oneof in filter(self._is_required_oneof, shape.desc.oneofs):
                names = [field.json_name for field in oneof.fields]
                if properties.keys() >= set(names):  # none is sent in the path
                    one_of_them = [{"required": [name]} for name in names]
                    excluded.append({"not": {"anyOf": one_of_them}})
            if excluded:
                # inside `not`, because client generators make types of alternatives
                schema["not"] = {"anyOf": excluded}
        text = comment(shape.desc)
        return {**schema, "description": text} if text else schema

    def is_output(self, field: Field) -> bool:
        """Return whether only responses have a field (AIP-203)."""
        options, extension = field.desc.proto.options, self._behavior
        if extension is None or options is None or extension.type not in options:
            return False
        return _OUTPUT_ONLY in options[extension.type]

    def is_required(self, field: Field, *, request: bool) -> bool:
        """Return whether requests must set a field, or responses always have it.

        An absent field without presence is validated as its zero value.
        """
        implicit = int(field.desc.presence) == int(FeatureSet.FieldPresence.IMPLICIT)
        rules = self._rules(field)
        if not request or rules.get("required"):
            return implicit or request
        if not implicit or rules.get("ignore"):
            return False
        return refuses_zero(rules, field)

    def _is_required_oneof(self, oneof: DescOneof) -> bool:
        options, extension = oneof.proto.options, self._oneof_rules
        if extension is None or options is None or extension.type not in options:
            return False
        return bool(set_fields(options[extension.type]).get("required"))

    def _rules(self, field: Field) -> Rules:
        """Return a field's rules by name: `string`, `required`, `cel`, `ignore`, ..."""
        options = field.desc.proto.options
        extension = self._rules_extension
        if extension is None or options is None or extension.type not in options:
            return {}
        rules = set_fields(options[extension.type])
        return {} if rules.get("ignore") == IGNORE_ALWAYS else rules
