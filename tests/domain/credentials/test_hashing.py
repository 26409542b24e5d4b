"""The pool: who is served first, how many may wait, and for how long."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from threading import Event

import pytest

from server.domain.credentials.hashing import HashingPool
from server.domain.errors import Overloaded


@pytest.fixture
def pool() -> Iterator[HashingPool]:
    """Give one thread, for which two log-ins or 200 pieces of a batch may wait."""
    pool = HashingPool(1, queue=2, batches=200, patience=timedelta(seconds=30))
    yield pool
    pool.close()


class Busy:
    """Keeps a thread until it is let go."""

    def __init__(self) -> None:
        self._begun, self._end = asyncio.Event(), Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self) -> None:
        self._loop.call_soon_threadsafe(self._begun.set)
        self._end.wait(30)

    async def begun(self) -> None:
        async with asyncio.timeout(30):
            await self._begun.wait()

    def let_go(self) -> None:
        self._end.set()


def noted(order: list[str], name: str) -> Callable[[], None]:
    return lambda: order.append(name)


async def test_a_log_in_goes_before_a_batch_that_waits(pool: HashingPool) -> None:
    """100 hashes of a batch wait; a log-in that comes later is served next."""
    order: list[str] = []
    busy = Busy()
    first = asyncio.create_task(pool.run(busy))
    await busy.begun()
    batch = asyncio.create_task(pool.run_all([noted(order, "batch")] * 100))
    await asyncio.sleep(0)
    log_in = asyncio.create_task(pool.run(noted(order, "log-in")))
    await asyncio.sleep(0)
    busy.let_go()
    await asyncio.gather(first, batch, log_in)
    assert order == ["log-in", *["batch"] * 100]


async def test_a_batch_is_taken_whole_or_not_at_all(pool: HashingPool) -> None:
    order: list[str] = []
    with pytest.raises(Overloaded):
        await pool.run_all([noted(order, "too many")] * 202)
    await pool.run(noted(order, "one"))
    assert order == ["one"]


async def test_a_batch_that_waits_keeps_no_log_in_out(pool: HashingPool) -> None:
    """Each kind has places of its own."""
    busy = Busy()
    first = asyncio.create_task(pool.run(busy))
    await busy.begun()
    batch = asyncio.create_task(pool.run_all([lambda: None] * 200))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await pool.run_all([lambda: None])
    log_ins = [asyncio.create_task(pool.run(lambda: None)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await pool.run(lambda: None)
    assert caught.value.retry_after
    busy.let_go()
    await asyncio.gather(first, batch, *log_ins)


async def test_who_waits_too_long_is_told_to_come_again() -> None:
    """A log-in is not kept waiting beyond its caller's patience."""
    pool = HashingPool(1, queue=9, batches=9, patience=timedelta(milliseconds=20))
    busy, order = Busy(), list[str]()
    first = asyncio.create_task(pool.run(busy))
    await busy.begun()
    with pytest.raises(Overloaded):
        await pool.run(noted(order, "late"))
    busy.let_go()
    await first  # it had begun, and is waited for
    assert not order
    pool.close()


async def test_a_caller_who_is_gone_leaves_the_queue(pool: HashingPool) -> None:
    """What waits is never done; what runs keeps its thread to its end."""
    order: list[str] = []
    busy = Busy()
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(pool.run(busy))]
    await busy.begun()
    tasks += [asyncio.create_task(pool.run(noted(order, "gone"))) for _ in range(2)]
    tasks.append(asyncio.create_task(pool.run_all([noted(order, "gone")] * 9)))
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    later = [asyncio.create_task(pool.run(noted(order, "later"))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await pool.run(lambda: None)
    busy.let_go()
    await asyncio.gather(*later)
    assert order == ["later", "later"]


async def test_what_fails_fails_its_caller_alone(pool: HashingPool) -> None:
    def fails() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await pool.run(fails)
    assert await pool.run(lambda: 7) == 7
