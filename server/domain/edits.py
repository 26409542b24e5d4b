"""Changes of single fields: which ones may be written, and to what version."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import datetime

from server.domain.errors import InvalidFields, Violation


@dataclass(frozen=True, slots=True)
class Edit:
    """New values of fields by name, and the version that must be in force, if any."""

    values: Mapping[str, object]
    etag: str
    now: datetime


def check_writable(
    resource: str, values: Mapping[str, object], writable: Set[str]
) -> None:
    """Raise InvalidFields naming each field of a resource that may not be written."""
    broken = [
        Violation(
            f"{resource}.{json_name(name)}",
            "may not be written",
            "update_mask.not_writable",
        )
        for name in values
        if name not in writable
    ]
    if broken:
        raise InvalidFields(broken)


def json_name(name: str) -> str:
    """Give a field's name as JSON writes it."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def etag(version: int) -> str:
    """Give a version as callers write it."""
    return f"{version:x}"
