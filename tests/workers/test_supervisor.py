"""Background work goes on, whatever befalls it."""

import asyncio
from collections.abc import Callable

from server.workers.supervisor import supervise


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0)


async def test_what_fails_is_begun_anew() -> None:
    """A process must not go on with what it knew when its watch broke."""
    begun = []

    async def work() -> None:
        begun.append(1)
        raise ValueError("something nobody thought of")

    async with supervise(work, pause=0):
        await until(lambda: len(begun) > 3)


async def test_it_ends_though_a_cancellation_is_swallowed() -> None:
    """redis-py swallows one while it connects."""

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)

    async with asyncio.timeout(10), supervise(stubborn):
        await asyncio.sleep(0)
