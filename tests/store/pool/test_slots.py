"""Who waits for a slot of the pool, and who is refused at once."""

import asyncio
import time

import pytest

from server.domain.deadlines import call_deadline
from server.store.pool.slots import PoolTimeout, Slots

HELD_SECONDS = 0.02
SETTLING_CALLERS = 60  # until the mean is close to HELD_SECONDS


async def hold(slots: Slots, seconds: float = HELD_SECONDS) -> float:
    """Hold a slot; return the seconds for which it was waited."""
    started = time.monotonic()
    async with slots.acquired():
        waited = time.monotonic() - started
        await asyncio.sleep(seconds)
    return waited


async def busy_slots(size: int, wait_seconds: float) -> Slots:
    """Return slots that know for how long their callers hold them."""
    slots = Slots(size, wait_seconds)
    for _ in range(SETTLING_CALLERS // size):
        await asyncio.gather(*(hold(slots) for _ in range(size)))
    return slots


async def test_callers_beyond_the_wait_are_refused_at_once() -> None:
    """Those before them are served, within the wait."""
    slots = await busy_slots(2, wait_seconds=0.2)
    started = time.monotonic()
    refused_after: list[float] = []

    async def call() -> float | None:
        try:
            return await hold(slots)
        except PoolTimeout:
            refused_after.append(time.monotonic() - started)
            return None

    waits = await asyncio.gather(*(call() for _ in range(100)))
    served = [wait for wait in waits if wait is not None]
    assert len(served) >= 10
    assert len(served) + slots.timeouts == 100
    assert sum(seconds < HELD_SECONDS for seconds in refused_after) > 50


async def test_caller_whose_deadline_comes_first_is_refused_at_once() -> None:
    slots = await busy_slots(1, wait_seconds=60)
    others = [asyncio.ensure_future(hold(slots)) for _ in range(20)]
    await asyncio.sleep(0)
    call_deadline.set(time.monotonic() + 2 * HELD_SECONDS)
    with pytest.raises(PoolTimeout):
        await hold(slots)
    assert slots.timeouts == 1
    await asyncio.gather(*others)


async def test_slow_caller_does_not_refuse_a_short_queue() -> None:
    """One statement that waited for a lock says little about the next ones."""
    slots = Slots(1, wait_seconds=0.1)
    await hold(slots, 0.5)
    first = asyncio.ensure_future(hold(slots))
    await asyncio.sleep(0)
    assert await hold(slots) < 0.1
    await first
