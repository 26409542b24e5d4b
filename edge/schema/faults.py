"""What JSON bodies do wrong: ambiguity, and the search for a refused body's fault."""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from itertools import accumulate
from time import thread_time
from typing import Any

from protobuf import Message, Registry

from edge.errors import BAD_INPUT, HttpError, Violation, fault, invalid, two_of_one
from edge.schema.fields import ANY, Field, Shape
from edge.schema.integers import refuse_invalid_integers

# The native codec reads JSON by recursion and has no bound of its own: some 15,000
# brackets overflow the stack and end the process. No message nests so deep.
DEEPEST = 1_000
MOST_HOLDERS = 5_000  # lists and objects in one body
MOST_VALUES = 100_000
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\1\1\xff\xff")  # as signed bytes: 1 and -1
_OTHER = bytes(set(range(256)) - set(b"[{]}"))
# What finding a fault may cost; beyond it the fault is told as far as it is known.
SEARCH_SECONDS = 0.25  # of CPU
_TOO_DEEP = "the JSON body is nested too deep"


def refuse_bulk(body: bytes) -> None:
    """Raise HttpError before anything reads JSON that costs far more than its bytes.

    That is what nests deeper than DEEPEST, or holds too many values.
    """
    if body.count(b"[") + body.count(b"{") <= DEEPEST and len(body) <= MOST_VALUES:
        return
    bare = _STRINGS.sub(b"", body)
    steps = bare.translate(_STEPS, _OTHER)
    if max(accumulate(memoryview(steps).cast("b")), default=0) > DEEPEST:
        raise HttpError(_TOO_DEEP)
    _refuse_more(bare.count(b"{") + bare.count(b"["), MOST_HOLDERS, "lists and objects")
    _refuse_more(bare.count(b","), MOST_VALUES, "values")


def _refuse_more(count: int, most: int, what: str) -> None:
    if count > most:
        told = f"the JSON body has more than {most} {what}"
        raise HttpError(told, "BODY_TOO_LARGE", http=413)


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
    """Read a number; a longer one fits no type, and Python limits such digits."""
    return int(digits) if len(digits) < 32 else float(digits)


_decoder = json.JSONDecoder(object_pairs_hook=_distinct, parse_int=_whole)
_all_keys = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=float)


def strict_tree(body: bytes, at: str = "") -> Any:
    """Give a JSON text's values; raises HttpError on broken JSON or a double key.

    `at` is where the text stands.
    """
    try:
        text = body.decode()
        try:
            return _decoder.decode(text)
        except _Duplicate:
            path = "".join((at, *reversed(_twice(_all_keys.decode(text))))).lstrip(".")
            raise fault(path, "the key stands twice", "DUPLICATE_FIELD") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise HttpError(f"the body is not JSON: {error.msg} at {where}") from None
    except UnicodeDecodeError:
        raise HttpError("the body is not JSON: it is not UTF-8") from None
    except RecursionError:
        raise HttpError(_TOO_DEEP) from None


def _twice(value: Any) -> list[str]:
    """Give the path, from its end, of the first key that stands twice."""
    if isinstance(value, _Pairs):
        seen: set[str] = set()
        for name, item in value:
            if name in seen:
                return [f".{name}"]
            seen.add(name)
            if found := _twice(item):
                return [*found, f".{name}"]
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if found := _twice(item):
                return [*found, f"[{index}]"]
    return []


Within = Callable[[Any], Shape | None]  # the JSON of an Any -> its inner type


def refuse_ambiguity(tree: Any, shape: Shape, within: Within, path: str = "") -> None:
    """Refuse a field or a map's key given twice, and two members of one oneof."""
    kind = within(tree) if shape.name == ANY else shape
    if kind is None or kind.special or not isinstance(tree, dict):
        return
    seen: dict[object, str] = {}
    for name, value in tree.items():
        field = kind.named.get(name)
        if field is None:
            continue
        at = path + field.json_name
        refuse_invalid_integers(field, value, at)
        _refuse_second(field, value, at, seen)
        for where, item in field.items(value) if field.typed else ():
            assert field.typed is not None  # noqa: S101  # said above, for mypy
            refuse_ambiguity(item, field.typed, within, f"{at}{where}.")


def _refuse_second(field: Field, value: Any, at: str, seen: dict[object, str]) -> None:
    if field.json_name in seen:
        raise fault(at, "it is given twice", "DUPLICATE_FIELD")
    seen[field.json_name] = at
    if value is None and not field.takes_null:
        return
    if field.oneof in seen:
        raise two_of_one(at, seen[field.oneof])
    if field.oneof is not None:
        seen[field.oneof] = at
    if field.whole_keys and len({_whole_key(key, at) for key in value}) < len(value):
        raise fault(at, "one of its keys is given twice", "DUPLICATE_FIELD")


def _whole_key(key: str, at: str) -> Decimal:
    try:
        return Decimal(key)
    except ArithmeticError:  # an exponent beyond what even a Decimal has
        raise fault(at, "one of its keys is no integer") from None


_LOOSE = frozenset(
    f"google.protobuf.{name}"
    for name in ("Any", "FieldMask", "ListValue", "Struct", "Value")
)


def _holds(shape: Shape, names: frozenset[str], seen: set[str]) -> bool:
    """Tell whether a type, or one that may stand within it, is one of these."""
    if shape.name in names:
        return True
    if shape.special or shape.name in seen:
        return False
    seen.add(shape.name)
    return any(
        field.message is not None and _holds(field.message, names, seen)
        for field in shape.fields
    )


class FaultFinder:
    """Narrows a fault down by giving the codec ever smaller parts of a body."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._strict: dict[str, bool] = {}  # types whose values may have no JSON

    def read(self, shape: Shape, text: bytes | str) -> Message:
        """Give the message that a JSON text is; raises one of BAD_INPUT.

        The codec reads some values that it cannot write, on the wire or as JSON: a
        number beyond an enum's range, an infinite Value, a mask's empty path.
        """
        message = shape.type.from_json(text, registry=self._registry)
        message.to_binary()
        if shape.name not in self._strict:
            self._strict[shape.name] = _holds(shape, _LOOSE, set())
        if self._strict[shape.name]:
            message.to_json(registry=self._registry)
        return message

    def refusal(self, body: bytes, shape: Shape) -> HttpError:
        """Give the refusal of a body that the codec does not take."""
        try:
            search = _Search(self.read)
            found = search.violation(strict_tree(body), shape, "")
        except HttpError as refused:
            return refused
        except RecursionError:
            return HttpError(_TOO_DEEP)
        return invalid(found or Violation("", shape.kind.told))


class _Search:
    """One search for the first fault of a value that should be of a type."""

    def __init__(self, read: Callable[[Shape, str], Message]) -> None:
        self._read = read
        self._until = thread_time() + SEARCH_SECONDS

    @property
    def _is_over(self) -> bool:
        return thread_time() > self._until

    def violation(self, tree: Any, shape: Shape, path: str) -> Violation | None:
        """Give the first fault within a JSON value, named as far as there is time."""
        if shape.special or not isinstance(tree, dict):
            good = self._fits(shape, tree)
            return None if good else Violation(path, shape.kind.told)
        for name, value in tree.items():
            if self._fits(shape, {name: value}):
                continue
            field = shape.named.get(name)
            at = f"{path}.{field.json_name if field else name}".lstrip(".")
            if field is None:
                return Violation(at, "there is no such field", "UNKNOWN_FIELD")
            return self._within(value, field, at, shape)
        return None

    def _within(self, value: Any, field: Field, at: str, shape: Shape) -> Violation:
        """Look for a fault deeper than a field, which as a whole is faulty."""
        if self._is_over:
            return Violation(at, "it has a fault that would take too long to find")
        if field.many:
            if not isinstance(value, field.many):
                what = (
                    "a list" if field.many is list else "an object of keys and values"
                )
                return Violation(at, f"must be {what}")
            where, value = self._first_bad(value, field, shape)
            at += where
        found = self.violation(value, field.nested, at) if field.nested else None
        return found or Violation(at, field.kind.told)

    def _first_bad(self, value: Any, field: Field, shape: Shape) -> tuple[str, Any]:
        """Bisect: a part is good just if all of its items are."""
        parts = list(value.items() if field.many is dict else value)
        good, bad = 0, len(parts)
        while bad - good > 1:
            middle = (good + bad) // 2
            some = parts[good:middle]
            held = dict(some) if field.many is dict else some
            if self._fits(shape, {field.json_name: held}):
                good = middle
            else:
                bad = middle
        return list(field.items(value))[good]

    def _fits(self, shape: Shape, value: Any) -> bool:
        """Tell whether a value is good; once too much was read, that it is not."""
        if self._is_over:
            return False
        try:
            self._read(shape, json.dumps(value))
        except BAD_INPUT:
            return False
        return True
