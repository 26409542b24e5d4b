"""The queue for connections of the pool, under overload and after a pause."""

import asyncio
import time
from contextlib import suppress

import pytest

from server.store.pool.slots import OVERLOADED_WAIT_SECONDS, PoolTimeout, Slots

WAIT_SECONDS = 0.3


async def hold(slots: Slots, seconds: float) -> float:
    """Hold a slot for some time; return how long it took to get it."""
    started = time.monotonic()
    async with slots.acquired():
        waited = time.monotonic() - started
        await asyncio.sleep(seconds)
    return waited


async def refusal_seconds(slots: Slots) -> float:
    started = time.monotonic()
    with pytest.raises(PoolTimeout):
        await hold(slots, 0)
    return time.monotonic() - started


async def test_a_queue_that_stays_long_is_refused_sooner() -> None:
    """The first callers wait for the whole time, and later ones no longer do."""
    slots = Slots(1, WAIT_SECONDS)
    holder = asyncio.create_task(hold(slots, 3 * WAIT_SECONDS))
    await asyncio.sleep(0)
    first = asyncio.create_task(refusal_seconds(slots))
    await asyncio.sleep(0.6 * WAIT_SECONDS)
    second = asyncio.create_task(refusal_seconds(slots))
    assert await first > 0.9 * WAIT_SECONDS
    await asyncio.sleep(0.01)
    assert await refusal_seconds(slots) < (OVERLOADED_WAIT_SECONDS + WAIT_SECONDS) / 2
    assert await second > 0.9 * WAIT_SECONDS
    assert slots.timeouts == 3
    await holder
    assert await hold(slots, 0) < OVERLOADED_WAIT_SECONDS


async def test_slow_statements_without_a_queue_are_no_overload() -> None:
    """The next caller is given its whole time: nobody has waited before."""
    slots = Slots(1, WAIT_SECONDS)
    holder = asyncio.create_task(hold(slots, 2 * WAIT_SECONDS))
    await asyncio.sleep(1.2 * WAIT_SECONDS)
    assert await hold(slots, 0) > OVERLOADED_WAIT_SECONDS
    await holder


async def test_callers_wait_again_once_a_slot_was_free() -> None:
    """After an overload the next queue is given its whole time."""
    slots = Slots(1, WAIT_SECONDS)
    await hold(slots, 2 * WAIT_SECONDS)
    await hold(slots, 0)
    holder = asyncio.create_task(hold(slots, 2 * OVERLOADED_WAIT_SECONDS))
    await asyncio.sleep(0)
    assert await hold(slots, 0) > OVERLOADED_WAIT_SECONDS
    await holder


async def test_a_pause_of_the_event_loop_is_no_overload() -> None:
    """Callers that waited while the loop was blocked get their slots."""
    slots = Slots(2, WAIT_SECONDS)
    callers = [asyncio.create_task(hold(slots, 0.001)) for _ in range(50)]
    await asyncio.sleep(0.002)
    time.sleep(0.8 * WAIT_SECONDS)  # noqa: ASYNC251 - the pause
    await asyncio.gather(*callers)
    assert slots.timeouts == 0
    with suppress(PoolTimeout):
        await hold(slots, 0)
    assert (slots.in_use, slots.waiting) == (0, 0)
