"""Field masks: which fields an update changes, and to what (AIP-134, AIP-161)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from server.domain.edits import json_name
from server.domain.errors import InvalidFields, Violation

Readers = Mapping[str, Callable[[Any], object]]
_NOTHING = Violation(
    "updateMask", "must name at least one field", "update_mask.required"
)


def new_values(
    resource: str,
    message: Message,
    mask: FieldMask,
    readers: Readers,
    *,
    bound: Collection[str] = ("id",),
    may_be_empty: Collection[str] = (),
) -> dict[str, object]:
    """Give the new values by field; what the mask names otherwise is None.

    Without a mask those that are set, but for the `bound` ones, which say which
    resource it is. Raises InvalidFields for a mask that names nothing, and for a field
    that would become empty and may not.
    """
    paths: Sequence[str] = list(mask.paths) or [
        field.name
        for field, _ in message.ListFields()
        if field.name not in {*bound, "etag"}
    ]
    if not paths:
        raise InvalidFields([_NOTHING])
    values = {
        path: readers[path](message) if path in readers else None for path in paths
    }
    broken = [
        Violation(
            f"{resource}.{json_name(path)}", "must not be empty", "update_mask.empty"
        )
        for path, value in values.items()
        if path in readers and path not in may_be_empty and value in ("", None)
    ]
    if broken:
        raise InvalidFields(broken)
    return values
