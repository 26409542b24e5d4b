"""A cache of bounded size for what costs more to build than to look up."""

from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class BoundedCache(Generic[Key, Value]):
    """Keeps `size` values; the oldest one makes room for a new one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: dict[Key, Value] = {}
        self.get = self._values.get  # without a call in between: it is used per request

    def add(self, key: Key, value: Value) -> None:
        """Keep a value."""
        if len(self._values) >= self._size and key not in self._values:
            del self._values[next(iter(self._values))]
        self._values[key] = value
