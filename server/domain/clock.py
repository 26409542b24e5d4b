"""The time, as an argument: rules never ask the machine for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def system_clock() -> datetime:
    """Give the present moment, in UTC."""
    return datetime.now(UTC)
