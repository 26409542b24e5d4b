"""buf.validate rules -> JSON Schema keywords."""

import re
from typing import Any

from protobuf import DescEnum, Message

from edge.schema.fields import Field
from edge.schema.kinds import Schema

IGNORE_IF_ZERO_VALUE, IGNORE_ALWAYS = 1, 3  # buf.validate.Ignore
_INTEGER_BOUNDS = {"gt": ("minimum", 1), "gte": ("minimum", 0)}
_INTEGER_BOUNDS |= {"lt": ("maximum", -1), "lte": ("maximum", 0)}
_NUMBER_BOUNDS = {"gt": "exclusiveMinimum", "gte": "minimum"}
_NUMBER_BOUNDS |= {"lt": "exclusiveMaximum", "lte": "maximum"}
_KEYWORDS: dict[str, dict[str, str]] = {
    "string": {"min_len": "minLength", "max_len": "maxLength", "pattern": "pattern"},
    "repeated": {
        "min_items": "minItems",
        "max_items": "maxItems",
        "unique": "uniqueItems",
    },
    "map": {"min_pairs": "minProperties", "max_pairs": "maxProperties"},
    "bytes": {},
    "enum": {},
}
_FORMATS = {name: name for name in ("email", "hostname", "ipv4", "ipv6", "uri", "uuid")}
_FORMATS["uri_ref"] = "uri-reference"
_DIGITS = {0: "^(0|[1-9][0-9]*)$", 1: "^[1-9][0-9]*$"}  # by minimum
_MATCHES = re.compile(r"""this\.matches\((r?)(['"])(.*)\2\)""", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)")
Rules = dict[str, Any]  # the fields that are set in a rule message, by name


def set_fields(message: Any) -> Rules:
    """Return the fields that are set in a message, by name."""
    return {f.name: message[f] for f in message.desc().fields if f in message}


def constrained(schema: Schema, rules: Rules, field: Field) -> Schema:
    """Return a copy of a field's schema with the keywords of its rules."""
    result = _with_keywords(schema, rules, field)
    if _is_text_integer(field) and result.get("type") == "string":
        return _with_text_bounds(result)
    if rules.get("ignore") == IGNORE_IF_ZERO_VALUE:
        return _with_empty(result, schema)
    return result


def refuses_zero(rules: Rules, field: Field) -> bool:
    """Return whether the rules refuse the zero value: "", 0 or an empty list."""
    schema = _with_keywords({}, rules, field)
    names = ("minLength", "minItems", "minProperties", "minimum")
    return (
        max(schema.get(name, 0) for name in names) > 0
        or schema.get("exclusiveMinimum", -1) >= 0
        or schema.get("maximum", 0) < 0
        or schema.get("exclusiveMaximum", 1) <= 0
        or all(schema.get("enum", [0]))
        or "format" in schema
        or not re.search(schema.get("pattern", ""), "")
    )


def _with_keywords(schema: Schema, rules: Rules, field: Field) -> Schema:
    """Add keywords; bounds of 64-bit integers as numbers still."""
    result = dict(schema)
    patterns = _cel_patterns(rules)
    for kind, message in rules.items():
        if isinstance(message, Message):
            _apply(result, kind, set_fields(message), field)
    if "pattern" in result and patterns and result["pattern"] != schema.get("pattern"):
        patterns.append(result.pop("pattern"))
    if patterns:
        # One pattern for all: generators make types of their own of `allOf`.
        first, *others = patterns
        result["pattern"] = "".join(f"(?={other})" for other in others) + first
    return result


def _apply(schema: Schema, kind: str, rules: Rules, field: Field) -> None:
    """Write one typed rule message, such as StringRules, into a schema."""
    keywords = _KEYWORDS.get(kind)
    if keywords is None:
        _apply_bounds(schema, rules, field)
    for name, value in rules.items():
        if keywords and name in keywords:
            schema[keywords[name]] = value
        elif name in _FORMATS and value is True:
            schema["format"] = _FORMATS[name]
        elif name == "len" and kind == "string":
            schema["minLength"] = schema["maxLength"] = value
        elif name in ("in", "const") and (not keywords or kind == "string"):
            _apply_enum(schema, value if name == "in" else [value], field)
        elif name == "items" and "items" in schema:
            schema["items"] = constrained(schema["items"], set_fields(value), field)


def _apply_bounds(schema: Schema, rules: Rules, field: Field) -> None:
    """Write numeric bounds; those of integers are never exclusive."""
    integer = _is_text_integer(field) or schema.get("type") == "integer"
    for name, keyword in _NUMBER_BOUNDS.items():
        value = rules.get(name)
        if not isinstance(value, int | float):
            continue  # not set, or a Timestamp or Duration
        if integer:
            keyword, step = _INTEGER_BOUNDS[name]
            value += step
        schema[keyword] = value


def _apply_enum(schema: Schema, values: Any, field: Field) -> None:
    """Allow the listed values only."""
    if isinstance(field.element, DescEnum):
        names = {value.number: value.name for value in field.element.values}
        schema.pop("$ref", None)  # of all the enum's names
        schema["type"] = "string"
        schema["enum"] = [names[int(value)] for value in values if int(value) in names]
    elif all(isinstance(value, int | float | str) for value in values):
        schema["enum"] = list(values)


def _is_text_integer(field: Field) -> bool:
    """Return whether the field's values are 64-bit integers, which JSON has as text."""
    schema = field.kind.schema or {}
    return schema.get("format") in ("int64", "uint64")


def _with_text_bounds(schema: Schema) -> Schema:
    """Express the bounds of a 64-bit integer, which is text, by pattern or in words."""
    low, high = schema.pop("minimum", None), schema.pop("maximum", None)
    if "enum" in schema:
        schema["enum"] = [str(value) for value in schema["enum"]]
    elif low in _DIGITS:
        schema["pattern"] = _DIGITS[low]
        low = None
    limits = [
        f"{words} {limit}"
        for words, limit in (("at least", low), ("at most", high))
        if limit is not None
    ]
    text = " and ".join(limits).capitalize()
    return {**schema, "description": f"{text}."} if text else schema


def _with_empty(result: Schema, schema: Schema) -> Schema:
    """Allow "" by the pattern of a text that may be cleared.

    A text of a minimum length, an enum or a format cannot be cleared, so that clients
    leave the field out instead.
    """
    fixed = {"minLength", "format", "enum"} & set(result)
    if fixed or result.get("pattern") == schema.get("pattern"):
        return result
    return result | {"pattern": f"^$|{result['pattern']}"}


def _cel_patterns(rules: Rules) -> list[str]:
    """Return the regular expressions of CEL rules that consist of one `matches`."""
    expressions = [rule.expression or "" for rule in rules.get("cel", ())]
    matches = [
        _MATCHES.fullmatch(expression.strip())
        for expression in (*expressions, *rules.get("cel_expression", ()))
    ]
    return [m[3] if m[1] else _ESCAPE.sub(r"\1", m[3]) for m in matches if m]
