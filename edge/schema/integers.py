"""Integers in JSON strings: ProtoJSON's spelling, not Python's."""

import json
import re
from typing import Any

from protobuf import ScalarType

from edge.errors import fault
from edge.schema.fields import Field

_TYPES = frozenset(
    scalar for scalar in ScalarType if scalar.name.endswith(("32", "64"))
)
_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value" for name in ("Int32", "Int64", "UInt32", "UInt64")
)
# A JSON number, as the native codec also reads other digits, signs and underscores.
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_MESSAGE = "must be an integer"


def refuse_invalid_integers(field: Field, value: Any, path: str) -> None:
    """Raise HttpError for a string that is no integer in a field of integers."""
    if field.integer_keys and isinstance(value, dict):
        for key in value:
            _check(key, f"{path}[{json.dumps(key)}]")
    if isinstance(value, str | list | dict) and _is_integer(field):
        for suffix, item in field.items(value):
            _check(item, path + suffix)


def _is_integer(field: Field) -> bool:
    element = field.element
    if isinstance(element, ScalarType):
        return element in _TYPES
    return element.type_name in _WRAPPERS


def _check(value: Any, path: str) -> None:
    if isinstance(value, str) and not _INTEGER.fullmatch(value):
        raise fault(path, _MESSAGE)
