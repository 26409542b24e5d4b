"""Batcher: one call at a time, for all keys that wait."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from server.workers.batcher import Batcher


class Loader:
    """Doubles keys; `calls` has the keys of each call."""

    def __init__(self) -> None:
        self.calls: list[Sequence[int]] = []

    async def load(self, keys: Sequence[int]) -> Mapping[int, int]:
        self.calls.append(keys)
        await asyncio.sleep(0)
        if 13 in keys:
            raise ValueError
        return {key: 2 * key for key in keys if key != 5}


async def test_batcher_loads_together_what_waits() -> None:
    """Each caller gets its own result, or None if its key has none."""
    loader = Loader()
    batcher = Batcher(loader.load)
    first = asyncio.create_task(batcher.get(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = await asyncio.gather(*(batcher.get(key) for key in (2, 3, 3, 5)))
    assert await first == 2
    assert rest == [4, 6, 6, None]
    assert loader.calls == [[1], [2, 3, 5]]


async def test_batcher_raises_for_every_caller_of_the_batch() -> None:
    """The next batch is loaded all the same."""
    batcher = Batcher(Loader().load)
    failed = await asyncio.gather(
        batcher.get(13), batcher.get(2), return_exceptions=True
    )
    assert [type(error) for error in failed] == [ValueError, ValueError]
    assert await batcher.get(2) == 4


async def test_batcher_answers_others_when_a_caller_leaves() -> None:
    batcher = Batcher(Loader().load)
    leaving, staying = (asyncio.create_task(batcher.get(key)) for key in (1, 1))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == 2
    with pytest.raises(asyncio.CancelledError):
        await leaving
