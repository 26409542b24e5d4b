"""Values that an OpenAPI schema allows, and values that break one constraint of it."""

import re
import string
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]
Values = st.SearchStrategy[Any]
TEXT = st.characters(codec="utf-8", exclude_characters="\0")
INT64_MAX = 2**63 - 1
_INT64_MIN = {  # by pattern
    "^[1-9][0-9]*$": 1,
    "^(0|[1-9][0-9]*)$": 0,
    "^(0|-?[1-9][0-9]*)$": -(2**63),
}


def valid(schema: Schema) -> Values:
    """Return values that a schema allows."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return {
        "boolean": lambda _: st.booleans(),
        "integer": lambda schema: st.integers(*bounds(schema)),
        "number": lambda schema: st.floats(
            schema.get("minimum", 0), schema.get("maximum", 1)
        ),
        "array": _valid_list,
        "object": _valid_object,
        "string": _valid_text,
    }[schema["type"]](schema)


def _valid_list(schema: Schema) -> Values:
    low, high = schema.get("minItems", 0), min(schema.get("maxItems", 3), 3)
    return st.lists(valid(schema["items"]), min_size=low, max_size=max(low, high))


def _valid_object(schema: Schema) -> Values:
    properties = schema.get("properties", {})
    choices = [name for one in schema.get("anyOf", []) for name in one["required"]]
    names = [*schema.get("required", []), *choices[:1]]
    required = {n: valid(properties[n]) for n in names}
    others = {
        name: valid(property_schema)
        for name, property_schema in properties.items()
        if name not in required and name not in choices
    }
    return st.fixed_dictionaries(required, optional=others)


def _valid_text(schema: Schema) -> Values:
    low, high = schema.get("minLength", 0), schema.get("maxLength", 100)
    if is_int64(schema):
        return st.integers(*bounds(schema)).map(str)
    if schema.get("format") == "uuid":
        return st.uuids().map(str)
    if schema.get("format") == "date-time":
        return st.integers(4_000_000_000, 9_000_000_000).map(_rfc3339)
    if "pattern" not in schema:
        return st.text(TEXT, min_size=low, max_size=high)
    # With the length in the pattern, since a filter would discard nearly every text,
    # and without the lookaheads in front, which hypothesis does not generate.
    pattern = schema["pattern"].rpartition(")^")[2].removeprefix("^")
    pattern = re.sub(r"\*\$$", f"{{{low},{high}}}$", f"^{pattern}")
    matching = st.from_regex(pattern, fullmatch=True)
    return matching.filter(
        lambda text: low <= len(text) <= high and re.search(schema["pattern"], text)
    )


def _rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def is_int64(schema: Schema) -> bool:
    """Return whether a schema is of 64-bit integers, which are text."""
    return schema.get("format") == "int64"


def bounds(schema: Schema) -> tuple[int, int]:
    """Return the least and the greatest integer that a schema allows."""
    if is_int64(schema):
        return _INT64_MIN[schema["pattern"]], INT64_MAX
    return schema["minimum"], schema["maximum"]


def boundaries(schema: Schema) -> Iterator[Values]:
    """Yield the extreme values that a schema allows, or all if they are few."""
    if "enum" in schema:
        yield from map(st.just, schema["enum"])
    elif schema["type"] == "boolean":
        yield from (st.just(False), st.just(True))
    elif schema["type"] == "integer":
        yield from map(st.just, bounds(schema))
    elif is_int64(schema):
        yield from (st.just(str(bound)) for bound in bounds(schema))
    elif schema["type"] == "string":
        if low := schema.get("minLength"):
            yield valid(schema).map(lambda text: text[:low])
        if high := schema.get("maxLength"):
            yield valid(schema).map(lambda text: _padded(text, high, schema))


def _padded(text: str, length: int, schema: Schema) -> str:
    """Return a text of the greatest length, if its pattern allows it."""
    padded = text.rjust(length, "a")
    return padded if re.search(schema.get("pattern", ""), padded) else text


def broken(schema: Schema, *, as_text: bool) -> Iterator[tuple[str, Values]]:
    """Yield, for each constraint, its name and values that break only this one.

    `as_text`: the value is a parameter, which is text. `null` is not among the values:
    in ProtoJSON it is the same as leaving the field out.
    """
    kind = schema["type"]
    if not as_text:
        wrong: list[object] = [["a"]]
        wrong += [] if kind == "object" else [{"a": "a"}]
        wrong += [] if kind == "number" else [7.25]
        wrong += [] if kind == "boolean" else [True]
        yield "type", st.sampled_from(wrong)
    elif kind in ("integer", "number", "boolean"):
        fraction = [] if kind == "number" else ["0.5"]
        yield "type", st.sampled_from(["x", "1x", "truee", "[]", *fraction])
    if kind == "integer" or is_int64(schema):
        low, high = bounds(schema)
        written = str if is_int64(schema) else int
        yield "minimum", st.integers(max_value=low - 1).map(written)
        yield "maximum", st.integers(min_value=high + 1).map(written)
    if is_int64(schema):
        yield "format", st.sampled_from(["x", "1x", "0.5", " 1"])
    elif "enum" in schema:
        words = st.text(string.ascii_letters, min_size=1, max_size=20)
        yield "enum", words.filter(lambda word: word not in schema["enum"])
    else:
        yield from _broken_text(schema)


def _broken_text(schema: Schema) -> Iterator[tuple[str, Values]]:
    texts = valid(schema)
    if low := schema.get("minLength"):
        yield "minLength", texts.map(lambda text: text[: low - 1])
    if high := schema.get("maxLength"):
        yield "maxLength", texts.map(lambda text: text.rjust(high + 1, "a"))
    if pattern := schema.get("pattern"):
        strange = [char for char in "\0\n !é" if not re.search(pattern, f"a{char}a")]
        endings = st.sampled_from([f"{char}a" for char in strange])
        length = (high or 100) - 2
        bad = st.builds(lambda text, end: text[:length] + end, texts, endings)
        yield "pattern", bad.filter(lambda text: not re.search(pattern, text))
    if schema.get("format") == "uuid":
        letters = string.ascii_letters + string.digits + "-"
        yield "format", st.text(letters, min_size=1, max_size=35)
