"""Finds what is wrong with JSON, and where: the slow path of a refused body."""

import json
import re
from collections.abc import Iterable
from typing import Any

from protobuf import Registry

from edge.errors import Refused, Violation, invalid
from edge.schema.shapes import Key, Shape, element_of, expectation, is_list, is_map

# What the native codec raises on input that is not of the type.
BAD_INPUT = (ValueError, TypeError, OverflowError, RecursionError)

# The native codec reads JSON by recursion and has no bound of its own: some 15,000
# brackets overflow the stack and end the process. No message nests so deep.
DEEPEST = 1_000
_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*"?|[][{}]', re.DOTALL)


def refuse_depth(body: bytes) -> None:
    """Raise Refused if JSON nests deeper than DEEPEST, before anything reads it."""
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return
    depth = 0
    for mark in _MARKS.finditer(body):
        first = mark[0][0]
        depth += (first in b"[{") - (first in b"]}")
        if depth > DEEPEST:
            raise Refused("the JSON body is nested too deep")


class _Duplicate(ValueError):
    """A key stands twice in one JSON object."""


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with every key that it has."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Duplicate
    return made


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 32 else float(digits)


# Numbers are not looked at where only keys matter, so the cheapest type does.
_keys_only = json.JSONDecoder(object_pairs_hook=_distinct, parse_int=float)
_exact = json.JSONDecoder(object_pairs_hook=_distinct, parse_int=_whole)
_all_keys = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=float)


def strict_tree(body: bytes, *, exact: bool = False) -> Any:
    """Give a JSON text's values; raises Refused on broken JSON or a double key."""
    try:
        return _tree(body.decode(), _exact if exact else _keys_only)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Refused(f"the body is not JSON: {error.msg} at {where}") from None
    except UnicodeDecodeError:
        raise Refused("the body is not JSON: it is not UTF-8") from None
    except RecursionError:
        raise Refused("the JSON body is nested too deep") from None


def _tree(text: str, decoder: json.JSONDecoder) -> Any:
    try:
        return decoder.decode(text)
    except _Duplicate:
        at = _twice(_all_keys.decode(text), "")
        told = Violation(at, "the key stands twice", "DUPLICATE_FIELD")
        raise invalid(told) from None


def _twice(value: Any, at: str) -> str:
    """Give the path of the first key that stands twice, "" if none does."""
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(value, _Pairs):
        items = ((f"{at}.{name}".lstrip("."), item) for name, item in value)
    elif isinstance(value, list):
        items = ((f"{at}[{index}]", item) for index, item in enumerate(value))
    seen: set[str] = set()
    for where, item in items:
        if where in seen:
            return where
        seen.add(where)
        found = _twice(item, where)
        if found:
            return found
    return ""


def refuse_ambiguity(tree: dict[str, Any], shape: Shape, path: str = "") -> None:
    """Refuse a field spelt in both ways, and two members of one oneof."""
    seen: dict[object, str] = {}
    for name, value in tree.items():
        key = shape.keys.get(name)
        if key is None or (value is None and not key.takes_null):
            continue
        at = path + key.json_name
        if key.json_name in seen:
            raise invalid(Violation(at, "it is given twice", "DUPLICATE_FIELD"))
        seen[key.json_name] = at
        if key.oneof is not None:
            if key.oneof in seen:
                raise two_of_one(at, seen[key.oneof])
            seen[key.oneof] = at
        if key.nested is not None:
            for where, item in _objects(value, key, at):
                refuse_ambiguity(item, key.nested, where + ".")


def two_of_one(field: str, other: str) -> Refused:
    """Give the refusal of two members of one oneof."""
    told = f"only one of it and {other} may be given"
    return invalid(Violation(field, told, "ONEOF_CONFLICT"))


def _objects(value: Any, key: Key, at: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Give the JSON objects that stand in a field, each with its path."""
    if not key.many:
        return ((at, value),) if isinstance(value, dict) else ()
    items: Iterable[tuple[Any, Any]] = (
        enumerate(value) if isinstance(value, list) else value.items()
    )
    return (
        (f"{at}[{json.dumps(i)}]", item) for i, item in items if isinstance(item, dict)
    )


class FaultFinder:
    """Narrows a fault down by giving the codec ever smaller parts of a body."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def refusal(self, body: bytes, shape: Shape) -> Refused:
        """Give the refusal of a body that the codec does not take."""
        try:
            tree = strict_tree(body, exact=True)
            found = self.violation(tree, shape, "")
        except Refused as refused:
            return refused
        except RecursionError:
            return Refused("the JSON body is nested too deep")
        return invalid(found or Violation("", expectation(shape.desc)))

    def violation(self, tree: Any, shape: Shape, path: str) -> Violation | None:
        """Give the first fault within a JSON value that should be of a type."""
        if shape.special or not isinstance(tree, dict):
            good = self._fits(shape, tree)
            return None if good else Violation(path, expectation(shape.desc))
        for name, value in tree.items():
            if self._fits(shape, {name: value}):
                continue
            key = shape.keys.get(name)
            at = f"{path}.{key.json_name if key else name}".lstrip(".")
            if key is None:
                return Violation(at, "there is no such field", "UNKNOWN_FIELD")
            return self._within(value, key, at, shape)
        return None

    def _within(self, value: Any, key: Key, at: str, shape: Shape) -> Violation:
        """Look for a fault deeper than a field, which as a whole is faulty."""
        if is_list(key.field):
            if not isinstance(value, list):
                return Violation(at, "must be a list")
            index = self._first_bad(value, key, shape)
            return self._item(value[index], f"{at}[{index}]", key)
        if is_map(key.field):
            return self._entry(value, key, at, shape)
        return self._item(value, at, key)

    def _entry(self, value: Any, key: Key, at: str, shape: Shape) -> Violation:
        for name, item in value.items() if isinstance(value, dict) else ():
            if not self._fits(shape, {key.json_name: {name: item}}):
                return self._item(item, f"{at}[{json.dumps(name)}]", key)
        return Violation(at, "must be an object of keys and values")

    def _item(self, item: Any, at: str, key: Key) -> Violation:
        found = self.violation(item, key.nested, at) if key.nested else None
        return found or Violation(at, expectation(element_of(key.field)))

    def _first_bad(self, items: list[Any], key: Key, shape: Shape) -> int:
        """Bisect: a part is good just if all of its items are."""
        good, bad = 0, len(items)
        while bad - good > 1:
            middle = (good + bad) // 2
            if self._fits(shape, {key.json_name: items[good:middle]}):
                good = middle
            else:
                bad = middle
        return good

    def _fits(self, shape: Shape, value: Any) -> bool:
        try:
            shape.type.from_json(json.dumps(value), registry=self._registry)
        except BAD_INPUT:
            return False
        return True
