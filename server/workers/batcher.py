"""Batcher: calls for single keys, answered by one call for many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key")
Result = TypeVar("Result")


class Batcher(Generic[Key, Result]):
    """Calls `load` for one key at once, and for those that wait for it together.

    At most one call of `load` is in progress, so that however many callers there are,
    they use one connection, and nobody waits for a batch to fill.
    """

    def __init__(
        self, load: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Result] | None]]
    ) -> None:
        """Load the results by key; None if the keys have no results."""
        self._load = load
        self._waiting: dict[Key, asyncio.Future[Result | None]] = {}
        self._loading: asyncio.Task[None] | None = None

    async def get(self, key: Key) -> Result | None:
        """Return the result for a key. Raises what `load` raises."""
        result = self._waiting.get(key)
        if result is None:
            result = asyncio.get_running_loop().create_future()
            self._waiting[key] = result
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_all())
        return await asyncio.shield(result)  # another caller may wait for it too

    async def _load_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, {}
            try:
                results = await self._load(list(batch)) or {}
            except Exception as error:
                for result in batch.values():
                    result.set_exception(error)
                    result.exception()  # a cancelled caller does not read it
            else:
                for key, result in batch.items():
                    result.set_result(results.get(key))
        self._loading = None
