"""Merges the values of one request from all its sources; conflicts are refused."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from protobuf import DescField, Message

from edge.errors import HttpError, fault, oneof_conflict
from edge.requests.parameters import FieldValue
from edge.schema.fields import Field, Parameter

Body = tuple[Message, Any]  # the request message of a body, and its JSON values
Equal = Callable[[FieldValue, FieldValue], bool]
Values = dict[tuple[str, ...], FieldValue]  # by the field's path


def merge_values(
    paths: Sequence[FieldValue],
    query: Iterable[FieldValue],
    headers: Iterable[FieldValue],
    cookies: Iterable[FieldValue],
    equal: Equal,
    resume_field: str,
) -> Sequence[FieldValue]:
    """Return one value for each field, and one member of each oneof.

    Raises HttpError for a conflict. The resume token of a header replaces the one of
    the query: it is where the client is now, not where it began.
    """
    values = {parameter.names: (parameter, value) for parameter, value in paths}
    bound = set(values)
    for item in query:
        _add(values, item, equal if item[0].names in bound else None)
    for item in headers:
        if item[0].last.name == resume_field:
            values[item[0].names] = item
        _add(values, item, equal)
    for item in cookies:
        _add(values, item, None)
    members: dict[object, str] = {}
    for parameter, _ in values.values():
        for level, oneof in parameter.oneofs:
            name = parameter.names[level]
            other = members.setdefault((parameter.names[:level], oneof), name)
            if other != name:
                raise oneof_conflict(parameter.path, other)
    return tuple(values.values())


def _add(values: Values, item: FieldValue, equal: Equal | None) -> None:
    """Add a value; with `equal`, the same value may be there already."""
    parameter, _ = item
    before = values.setdefault(parameter.names, item)
    if before is item:
        return
    if equal is None:
        raise _duplicate(parameter)
    if not equal(before, item):
        raise _conflict(parameter)


def _duplicate(parameter: Parameter) -> HttpError:
    return fault(parameter.path, "must not be set twice", "DUPLICATE_FIELD")


def _conflict(parameter: Parameter) -> HttpError:
    message = "must not be set twice with different values"
    return fault(parameter.path, message, "CONFLICTING_VALUES")


def refuse_conflict(
    parameter: Parameter, body: Body, bound: Message, exclusive: bool
) -> None:
    """Raise HttpError where a body contradicts a parameter or its oneof.

    With `exclusive`, the body must not have the field at all.
    """
    (message, tree), fields = body, parameter.fields
    if value_in_tree(tree, fields) is not None:
        if exclusive:
            raise _duplicate(parameter)
        if value_at(message, fields) != value_at(bound, fields):
            raise _conflict(parameter)
    for level, oneof in parameter.oneofs:
        parent = value_in_tree(tree, fields[:level])
        for sibling in oneof.fields:
            if sibling is not fields[level].desc and _is_set(parent, sibling):
                raise oneof_conflict(parameter.path, sibling.json_name)


def _is_set(tree: Any, field: DescField) -> bool:
    """Return whether a tree has a field; for some types null is a value."""
    if value_in_tree(tree, (field,)) is not None:
        return True
    names = {field.name, field.json_name} if isinstance(tree, dict) else set()
    return not names.isdisjoint(tree) and Field(field, {}).takes_null


def value_in_tree(tree: Any, fields: Sequence[Field | DescField]) -> Any:
    """Return the value at a path of a JSON tree, in either spelling; None: absent."""
    for field in fields:
        if not isinstance(tree, dict):
            return None
        value = tree.get(field.json_name)
        tree = tree.get(field.name) if value is None else value
    return tree


def value_at(message: Any, fields: Sequence[Field]) -> Any:
    """Return the value at a path of a message; None: a message on it is absent."""
    for field in fields:
        message = field.of(message) if message is not None else None
    return message
