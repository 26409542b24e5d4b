"""buf.validate rules -> JSON Schema, read through the descriptor set's own options."""

import re
from typing import Any

from protobuf import DescEnum, DescField, Message, Registry

from edge.schema.shapes import element_of, has_presence

_IGNORE_ZERO, _IGNORE_ALWAYS = 1, 3  # buf.validate.Ignore
_STRING = {"min_len": "minLength", "max_len": "maxLength", "pattern": "pattern"}
_NUMBER = {
    "gt": "exclusiveMinimum",
    "gte": "minimum",
    "lt": "exclusiveMaximum",
    "lte": "maximum",
}
_LIST = {"min_items": "minItems", "max_items": "maxItems", "unique": "uniqueItems"}
_MAP = {"min_pairs": "minProperties", "max_pairs": "maxProperties"}
_NAMES = {"string": _STRING, "repeated": _LIST, "map": _MAP, "bytes": {}, "enum": {}}
_FORMATS = {
    "email": "email",
    "hostname": "hostname",
    "ipv4": "ipv4",
    "ipv6": "ipv6",
    "uri": "uri",
    "uri_ref": "uri-reference",
    "uuid": "uuid",
}
_MATCHES = re.compile(r"""this\.matches\((r?)(['"])(.*)\2\)""", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)")


def _held(message: Message) -> dict[str, Any]:
    """Give the fields that are set, by name."""
    return {f.name: message[f] for f in message.desc().fields if f in message}


class Rules:
    """The rules of one descriptor set; none where it does not import buf.validate."""

    def __init__(self, registry: Registry) -> None:
        self._field = registry.extension("buf.validate.field")

    def of(self, field: DescField) -> dict[str, Any]:
        """Give a field's rules by name: `string`, `required`, `cel`, `ignore`, ..."""
        options = field.proto.options
        if self._field is None or options is None or self._field.type not in options:
            return {}
        held: Message = options[self._field.type]
        rules = _held(held)
        return {} if rules.get("ignore") == _IGNORE_ALWAYS else rules

    def constrain(self, schema: dict[str, Any], field: DescField) -> dict[str, Any]:
        """Give a field's schema with its rules."""
        rules = self.of(field)
        made = _constrained(schema, rules, field)
        if rules.get("ignore") == _IGNORE_ZERO and schema.get("type") == "string":
            return {"anyOf": [{"const": ""}, made]} if made != schema else made
        return made

    def is_required(self, field: DescField) -> bool:
        """Tell whether a request without the field is refused.

        A field without presence is checked as its zero value where it is absent.
        """
        rules = self.of(field)
        if rules.get("required"):
            return True
        if has_presence(field) or rules.get("ignore"):
            return False
        schema = _constrained({}, rules, field)
        return any(_refuses_zero(part) for part in (schema, *schema.get("allOf", ())))


def _refuses_zero(schema: dict[str, Any]) -> bool:
    least = max(schema.get(name, 0) for name in ("minLength", "minItems", "minimum"))
    return (
        least > 0
        or schema.get("minProperties", 0) > 0
        or schema.get("exclusiveMinimum", -1) >= 0
        or schema.get("maximum", 0) < 0
        or schema.get("exclusiveMaximum", 1) <= 0
        or not _zero_in(schema.get("enum", [schema.get("const", 0)]))
        or "format" in schema
        or not re.search(schema.get("pattern", ""), "")
    )


def _zero_in(values: list[Any]) -> bool:
    return any(not value for value in values)


def _constrained(
    schema: dict[str, Any], rules: dict[str, Any], field: DescField
) -> dict[str, Any]:
    made = dict(schema)
    patterns = [*_cel_patterns(rules)]
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


def _apply(
    made: dict[str, Any], kind: str, rules: dict[str, Any], field: DescField
) -> None:
    """Write one typed rule message, such as StringRules, into a schema."""
    names = _NAMES.get(kind, _NUMBER)
    numeric = names is _NUMBER
    for name, value in rules.items():
        if name in names and isinstance(value, int | float | str):
            made[names[name]] = value
        elif name in _FORMATS and value is True:
            made["format"] = _FORMATS[name]
        elif name == "len" and kind == "string":
            made["minLength"] = made["maxLength"] = value
        elif name in ("in", "const") and (numeric or kind in ("string", "enum")):
            made["enum"] = _values(value if name == "in" else [value], field)
        elif name == "items" and "items" in made:
            made["items"] = _constrained(made["items"], _held(value), field)


def _values(values: list[Any], field: DescField) -> list[Any]:
    enum = element_of(field)
    if isinstance(enum, DescEnum):
        names = {value.number: value.name for value in enum.values}
        return [names.get(int(value), int(value)) for value in values]
    return list(values)


def _cel_patterns(rules: dict[str, Any]) -> list[str]:
    """Give the regular expressions of rules that only match one (CEL `matches`)."""
    written = [rule.expression or "" for rule in rules.get("cel", ())]
    found = []
    for expression in (*written, *rules.get("cel_expression", ())):
        match = _MATCHES.fullmatch(expression.strip())
        if match:
            raw, _, text = match.groups()
            found.append(text if raw else _ESCAPE.sub(r"\1", text))
    return found
