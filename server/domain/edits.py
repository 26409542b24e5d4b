"""Partial updates: which fields a caller may write, and the version they expect."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import datetime

from server.domain.errors import InvalidFields, Violation


@dataclass(frozen=True, slots=True)
class Edit:
    """New values by field name; a non-empty `etag` must be the current version's."""

    values: Mapping[str, object]
    etag: str
    now: datetime

    def changes(self, current: object) -> dict[str, object]:
        """Return the values that differ from the attributes of `current`."""
        return {
            name: value
            for name, value in self.values.items()
            if getattr(current, name) != value
        }


def check_writable(
    resource: str, values: Mapping[str, object], writable: Set[str]
) -> None:
    """Raise InvalidFields that names each field outside `writable`."""
    violations = [
        Violation(
            f"{resource}.{json_name(name)}",
            "may not be changed",
            "update_mask.not_writable",
        )
        for name in values
        if name not in writable
    ]
    if violations:
        raise InvalidFields(violations)


def json_name(name: str) -> str:
    """Return the ProtoJSON form of a field name: `created_at` -> `createdAt`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def etag_of(version: int) -> str:
    """Return the etag of a version."""
    return f"{version:x}"
