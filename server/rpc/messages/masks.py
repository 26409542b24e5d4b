"""Field masks: which fields an update changes, and to what (AIP-134, 161, 203)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from google.api.field_behavior_pb2 import OUTPUT_ONLY, field_behavior
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from server.domain.edits import json_name
from server.domain.errors import InvalidFields, Violation

_FIELD_BEHAVIOR: Any = field_behavior  # not typed as an extension
Readers = Mapping[str, Callable[[Any], object]]
_MASK_REQUIRED = Violation(
    "updateMask", "must name at least one field", "update_mask.required"
)


def new_values(
    resource: str,
    message: Message,
    mask: FieldMask,
    readers: Readers,
    *,
    identifiers: Collection[str] = ("id",),
    may_be_empty: Collection[str] = (),
) -> dict[str, object]:
    """Return the new values by field; the value of a field without reader is None.

    An empty mask means the fields that are set, except `identifiers`, `etag` and
    output-only fields, so that a resource can be sent back as it was read. A field that
    the mask names is always returned: whether it may be written is checked later.

    Raises InvalidFields for no field at all, and for a field that must not be empty.
    """
    paths = list(mask.paths) or list(_writable_paths(message, identifiers))
    if not paths:
        raise InvalidFields([_MASK_REQUIRED])
    values = {
        path: readers[path](message) if path in readers else None for path in paths
    }
    violations = [
        Violation(
            f"{resource}.{json_name(path)}", "must not be empty", "update_mask.empty"
        )
        for path, value in values.items()
        if path in readers and path not in may_be_empty and value in ("", None)
    ]
    if violations:
        raise InvalidFields(violations)
    return values


def _writable_paths(message: Message, identifiers: Collection[str]) -> Iterator[str]:
    for field, _ in message.ListFields():
        behaviors: Any = field.GetOptions().Extensions[_FIELD_BEHAVIOR]
        output_only = OUTPUT_ONLY in behaviors
        if not output_only and field.name not in {*identifiers, "etag"}:
            yield field.name
