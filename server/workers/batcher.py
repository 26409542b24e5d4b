"""Batcher: calls for single keys, answered by one call for many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key")
Result = TypeVar("Result")


class Batcher(Generic[Key, Result]):
    """Calls `load` for one key at once, and for those that wait for it together.

    At most `max_calls` of `load` are in progress, so that however many callers there
    are, they use few connections, and nobody waits for a batch to fill.
    """

    def __init__(
        self,
        load: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Result] | None]],
        max_calls: int = 1,
    ) -> None:
        """Load the results by key; None if the keys have no results."""
        self._load = load
        self._waiting: dict[Key, asyncio.Future[Result | None]] = {}
        self._max_calls = max_calls
        self._loading: set[asyncio.Task[None]] = set()

    async def get(self, key: Key) -> Result | None:
        """Return the result for a key. Raises what `load` raises."""
        result = self._waiting.get(key)
        if result is None:
            result = asyncio.get_running_loop().create_future()
            self._waiting[key] = result
        if len(self._loading) < self._max_calls:
            self._loading.add(asyncio.create_task(self._load_all()))
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
        # here, not in a callback, which runs later: a key must not wait for nobody
        if task := asyncio.current_task():
            self._loading.discard(task)
