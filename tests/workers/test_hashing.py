"""HashingPool: priorities, and how many jobs may wait for how long."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event

import pytest

from server.domain.deadlines import call_deadline
from server.domain.errors import DeadlineExceeded, Overloaded
from server.workers.hashing import MAX_QUEUE_SIZE, HashingPool, HashingStatistics


@pytest.fixture
def pool() -> Iterator[HashingPool]:
    """Return a pool of one thread; two log-ins and 200 jobs of batches may wait."""
    pool = HashingPool(1, queue=2, batch_queue=200, max_wait=timedelta(seconds=30))
    yield pool
    pool.close()


class BlockingJob:
    """Occupies a thread until it is released."""

    def __init__(self) -> None:
        self._started, self._end = asyncio.Event(), Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self) -> None:
        self._loop.call_soon_threadsafe(self._started.set)
        self._end.wait(30)

    async def started(self) -> None:
        async with asyncio.timeout(30):
            await self._started.wait()

    def release(self) -> None:
        self._end.set()


def appending(order: list[str], name: str) -> Callable[[], None]:
    return lambda: order.append(name)


async def test_hashing_pool_serves_log_in_before_waiting_batch(
    pool: HashingPool,
) -> None:
    """100 jobs of a batch wait; a log-in that arrives later is served next."""
    order: list[str] = []
    blocking = BlockingJob()
    first = asyncio.create_task(pool.run(blocking))
    await blocking.started()
    batch = asyncio.create_task(pool.run_all([appending(order, "batch")] * 100))
    await asyncio.sleep(0)
    log_in = asyncio.create_task(pool.run(appending(order, "log-in")))
    await asyncio.sleep(0)
    blocking.release()
    await asyncio.gather(first, batch, log_in)
    assert order == ["log-in", *["batch"] * 100]


async def test_hashing_pool_admits_all_of_a_batch_or_none(pool: HashingPool) -> None:
    order: list[str] = []
    with pytest.raises(Overloaded):
        await pool.run_all([appending(order, "too many")] * 202)
    await pool.run(appending(order, "one"))
    assert order == ["one"]


async def test_hashing_pool_admits_log_ins_while_batch_queue_is_full(
    pool: HashingPool,
) -> None:
    """Each priority has a queue of its own."""
    blocking = BlockingJob()
    first = asyncio.create_task(pool.run(blocking))
    await blocking.started()
    batch = asyncio.create_task(pool.run_all([lambda: None] * 200))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await pool.run_all([lambda: None])
    log_ins = [asyncio.create_task(pool.run(lambda: None)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await pool.run(lambda: None)
    assert caught.value.retry_after
    blocking.release()
    await asyncio.gather(first, batch, *log_ins)


async def test_hashing_pool_refuses_log_in_after_max_wait() -> None:
    """Its job is cancelled; one that has started runs to its end."""
    pool = HashingPool(1, queue=9, batch_queue=9, max_wait=timedelta(milliseconds=20))
    blocking, order = BlockingJob(), list[str]()
    first = asyncio.create_task(pool.run(blocking))
    await blocking.started()
    with pytest.raises(Overloaded):
        await pool.run(appending(order, "late"))
    blocking.release()
    await first
    assert not order
    pool.close()


async def test_hashing_pool_cancelled_caller_leaves_queue(pool: HashingPool) -> None:
    """A waiting job is dropped; a running one keeps its thread to its end."""
    order: list[str] = []
    blocking = BlockingJob()
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(pool.run(blocking))]
    await blocking.started()
    tasks += [
        asyncio.create_task(pool.run(appending(order, "cancelled"))) for _ in range(2)
    ]
    tasks.append(asyncio.create_task(pool.run_all([appending(order, "cancelled")] * 9)))
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    later = [asyncio.create_task(pool.run(appending(order, "later"))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await pool.run(lambda: None)
    blocking.release()
    await asyncio.gather(*later)
    assert order == ["later", "later"]


async def test_hashing_pool_job_error_reaches_its_caller_only(
    pool: HashingPool,
) -> None:
    def fails() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await pool.run(fails)
    assert await pool.run(lambda: 7) == 7


@contextmanager
def deadline_in(seconds: float) -> Iterator[None]:
    """Set the deadline of the calls that the block begins."""
    token = call_deadline.set(time.monotonic() + seconds)
    yield
    call_deadline.reset(token)


class Backlog:
    """Jobs that wait for a blocking one."""

    def __init__(self, blocking: BlockingJob, tasks: list[asyncio.Task[None]]) -> None:
        self._blocking, self._tasks = blocking, tasks

    async def end(self) -> None:
        self._blocking.release()
        await asyncio.gather(*self._tasks)


async def occupied(pool: HashingPool, *, job_seconds: float, waiting: int) -> Backlog:
    """Return a pool's backlog: jobs that take this long, none of which has begun."""
    await pool.run(lambda: time.sleep(job_seconds))  # the pool learns the duration
    blocking = BlockingJob()
    tasks = [asyncio.create_task(pool.run(blocking))]
    await blocking.started()
    tasks += [asyncio.create_task(pool.run(lambda: None)) for _ in range(waiting)]
    await asyncio.sleep(0)
    return Backlog(blocking, tasks)


async def test_reserved_log_in_is_not_refused_later(pool: HashingPool) -> None:
    """Two may wait: a third is refused before its block, while they read accounts."""
    accounts = asyncio.Event()

    async def log_in() -> None:
        with pool.reserved():
            await accounts.wait()
            await pool.run(lambda: None)

    backlog = await occupied(pool, job_seconds=0, waiting=0)
    log_ins = [asyncio.create_task(log_in()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded), pool.reserved():
        pytest.fail("reserved")
    with pytest.raises(Overloaded):
        await pool.run(lambda: None)
    accounts.set()
    await asyncio.sleep(0)
    await backlog.end()
    await asyncio.gather(*log_ins)
    with pool.reserved():  # and not used
        pass
    assert pool.statistics == HashingStatistics(queue_length=0, refused=2)
    assert pool._reserved == 0


async def test_hashing_pool_refuses_job_that_cannot_meet_its_deadline() -> None:
    """Three jobs of 0.2 s are ahead: a call with 0.3 s left is refused at once."""
    pool = HashingPool(1)
    backlog = await occupied(pool, job_seconds=0.2, waiting=3)
    order: list[str] = []
    with deadline_in(0.3):
        with pytest.raises(Overloaded) as caught:
            await pool.run(appending(order, "late"))
        with pytest.raises(Overloaded):
            await pool.run_all([appending(order, "late")])
        with pytest.raises(Overloaded), pool.reserved():
            pytest.fail("reserved")
    assert caught.value.retry_after == timedelta(seconds=1)
    with deadline_in(30), pool.reserved():
        in_time = asyncio.create_task(pool.run(appending(order, "in time")))
        await asyncio.sleep(0)
    await backlog.end()
    await in_time
    assert order == ["in time"]
    assert pool.statistics == HashingStatistics(queue_length=0, refused=3)
    pool.close()


async def test_hashing_pool_refuses_log_in_that_would_exceed_max_wait() -> None:
    """Without a deadline, too; the error says how long the queue is."""
    pool = HashingPool(1, max_wait=timedelta(seconds=1.5))
    backlog = await occupied(pool, job_seconds=0.4, waiting=3)
    with pytest.raises(Overloaded) as caught:
        await pool.run(lambda: None)
    assert caught.value.retry_after == timedelta(seconds=2)
    assert pool.statistics == HashingStatistics(queue_length=3, refused=1)
    await backlog.end()
    pool.close()


async def test_hashing_pool_drops_expired_job() -> None:
    """A job whose deadline passed in the queue costs no hash."""
    pool = HashingPool(1)
    backlog = await occupied(pool, job_seconds=0, waiting=0)
    order: list[str] = []
    with deadline_in(0.02):
        expired = asyncio.create_task(pool.run(appending(order, "expired")))
        await asyncio.sleep(0)
    later = asyncio.create_task(pool.run(appending(order, "later")))
    await asyncio.sleep(0.05)
    await backlog.end()
    with pytest.raises(DeadlineExceeded):
        await expired
    await later
    assert order == ["later"]
    pool.close()


async def test_hashing_pool_drops_job_that_would_end_too_late() -> None:
    """A wait longer than expected leaves less time than a hash takes."""
    pool = HashingPool(1)
    backlog = await occupied(pool, job_seconds=0.2, waiting=0)
    order: list[str] = []
    with deadline_in(0.6):
        late = asyncio.create_task(pool.run(appending(order, "late")))
        await asyncio.sleep(0.45)
    await backlog.end()
    with pytest.raises(DeadlineExceeded):
        await late
    assert not order
    await pool.run(appending(order, "later"))
    assert order == ["later"]
    pool.close()


async def test_hashing_pool_reports_waiting_time_of_each_job() -> None:
    waits: list[float] = []
    pool = HashingPool(1, on_wait=waits.append)
    backlog = await occupied(pool, job_seconds=0, waiting=1)
    assert pool.statistics.queue_length == 1
    paused_at = time.monotonic()
    await asyncio.sleep(0.05)
    paused = time.monotonic() - paused_at  # the loop's timers may be a tick early
    await backlog.end()
    assert len(waits) == 3
    assert waits[2] >= paused
    pool.close()


async def test_hashing_pool_queue_is_bounded_in_all() -> None:
    """Waiting log-ins cannot use up the calls in flight, whatever the threads."""
    pool = HashingPool(8, queue=MAX_QUEUE_SIZE)
    jobs = [BlockingJob() for _ in range(8)]
    tasks = [asyncio.create_task(pool.run(job)) for job in jobs]
    for job in jobs:
        await job.started()
    tasks += [
        asyncio.create_task(pool.run(lambda: None)) for _ in range(MAX_QUEUE_SIZE)
    ]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await pool.run(lambda: None)
    for job in jobs:
        job.release()
    await asyncio.gather(*tasks)
    pool.close()
