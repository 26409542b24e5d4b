"""HashingPool: threads that hash passwords; log-ins are served before batches.

Argon2 and bcrypt release the GIL, so that the event loop runs meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from threading import Condition, Thread
from time import monotonic
from typing import Any, TypeVar

from server.domain.deadlines import call_deadline, time_left
from server.domain.errors import DeadlineExceeded, Overloaded

Result = TypeVar("Result")
QUEUE_SIZE = 100  # log-ins that may wait for each thread
MAX_QUEUE_SIZE = 500  # log-ins that may wait in all; each of them is a call in flight
MAX_BATCH_SIZE = 100  # accounts created by one call
MAX_WAIT = timedelta(seconds=5)  # of a log-in
MIN_RETRY_DELAY_SECONDS = 1
# Of the time left, for the wait and the hash: a log-in also writes its session, and
# the mean is an estimate. Without the rest, calls are late that were hashed.
_SHARE_OF_TIME_LEFT = 0.8
_WEIGHT = 0.1  # of the latest job in the mean duration


class Priority(IntEnum):
    """The lower is served first."""

    LOG_IN = 0
    BATCH = 1


@dataclass(frozen=True, slots=True)
class HashingStatistics:
    """Jobs that wait now, and jobs that were refused or waited too long."""

    queue_length: int
    refused: int


@dataclass(eq=False, slots=True)
class _Job:
    work: Callable[[], Any]
    queued_at: float = field(default_factory=monotonic)
    due: float = field(default_factory=call_deadline.get)  # by time.monotonic()
    done: Future[Any] = field(default_factory=Future)


@dataclass(eq=False, slots=True)
class _Reservation:
    """Capacity for one log-in; `used` once its job is in the queue."""

    used: bool = False


_reservation: ContextVar[_Reservation | None] = ContextVar("reservation", default=None)


def _ignore_wait(_seconds: float) -> None:
    """Discard how long a job has waited."""


class HashingPool:
    """Runs jobs in threads of its own, by default one less than there are cores.

    With as many threads as cores a log-in flood doubles the latency of everything
    else. For each thread at most `queue` log-ins wait, none for longer than
    `max_wait`, and at most `batch_queue` jobs of batches. A job is refused at once
    with Overloaded if the queue is full, or so long that the job would wait longer
    than `max_wait` or end after the deadline of its call. A cancelled caller leaves
    the queue, and so does a job whose deadline has passed; one that has begun runs to
    its end. A thread of the pool calls `on_wait` with the seconds that each job has
    waited.
    """

    def __init__(
        self,
        threads: int | None = None,
        *,
        queue: int = QUEUE_SIZE,
        batch_queue: int = 2 * MAX_BATCH_SIZE,
        max_wait: timedelta = MAX_WAIT,
        on_wait: Callable[[float], None] = _ignore_wait,
    ) -> None:
        threads = threads or max(1, _usable_cores() - 1)
        self._capacity = {
            Priority.LOG_IN: min(threads * queue, MAX_QUEUE_SIZE),
            Priority.BATCH: threads * batch_queue,
        }
        self._max_wait = max_wait.total_seconds()
        self._on_wait = on_wait
        self._waiting: dict[Priority, deque[_Job]] = {
            priority: deque() for priority in Priority
        }
        self._mean = 0.0  # seconds that a job takes
        self._refused = 0
        self._reserved = 0  # log-ins whose job is not in the queue yet
        self._free = 0
        self._open = True
        self._changed = Condition()
        self._threads = [
            Thread(target=self._serve, name=f"hash-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def statistics(self) -> HashingStatistics:
        """The figures of the queue."""
        waiting = sum(len(jobs) for jobs in self._waiting.values())
        return HashingStatistics(waiting, self._refused)

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Reserve capacity for the first log-in that `run` gets in the block.

        It is refused here or not at all, so that nothing is read for a log-in that is
        refused. Raises Overloaded.
        """
        with self._changed:
            self._refuse_beyond_capacity(Priority.LOG_IN, 1)
            self._reserved += 1
        reservation = _Reservation()
        token = _reservation.set(reservation)
        try:
            yield
        finally:
            _reservation.reset(token)
            with self._changed:
                self._use(reservation)

    def _use(self, reservation: _Reservation | None) -> bool:
        """Use a reservation; return whether there was one that had not been used."""
        if reservation is None or reservation.used:
            return False
        reservation.used = True
        self._reserved -= 1
        return True

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run the job of a log-in. Raises Overloaded, unless capacity is reserved."""
        (job,) = self._admit(Priority.LOG_IN, [work])
        outcome = asyncio.wrap_future(job.done)
        try:
            await asyncio.wait((outcome,), timeout=self._max_wait)
            if job.done.cancel():
                with self._changed:
                    raise self._refuse(self._max_wait)
            result: Result = await outcome
        finally:
            self._leave(Priority.LOG_IN, [job])
        return result

    async def run_all(self, works: Iterable[Callable[[], Result]]) -> list[Result]:
        """Run the jobs of a batch, all of them or none. Raises Overloaded."""
        jobs = self._admit(Priority.BATCH, works)
        try:
            waiting = (asyncio.wrap_future(job.done) for job in jobs)
            results: list[Result] = await asyncio.gather(*waiting)
        finally:
            self._leave(Priority.BATCH, jobs)
        return results

    def close(self) -> None:
        """Stop the threads once their present jobs are done; cancel those waiting."""
        with self._changed:
            self._open = False
            cancelled = [job for jobs in self._waiting.values() for job in jobs]
            self._changed.notify_all()
        for job in cancelled:
            job.done.cancel()
        for thread in self._threads:
            thread.join()

    def _admit(
        self, priority: Priority, works: Iterable[Callable[[], Any]]
    ) -> Sequence[_Job]:
        jobs = [_Job(work) for work in works]
        with self._changed:
            if priority is Priority.BATCH or not self._use(_reservation.get()):
                self._refuse_beyond_capacity(priority, len(jobs))
            self._waiting[priority].extend(jobs)
            self._changed.notify(len(jobs))
        return jobs

    def _refuse_beyond_capacity(self, priority: Priority, count: int) -> None:
        """Raise Overloaded if this many more jobs cannot be run in time."""
        log_ins = len(self._waiting[Priority.LOG_IN]) + self._reserved
        batch = len(self._waiting[Priority.BATCH])
        waiting = log_ins if priority is Priority.LOG_IN else batch
        is_full = waiting + count > self._capacity[priority] + self._free
        ahead = log_ins if priority is Priority.LOG_IN else log_ins + batch
        rounds = (ahead + count - self._free) / len(self._threads)
        wait = max(rounds, 0) * self._mean  # until the last of them begins
        latest_start = _SHARE_OF_TIME_LEFT * time_left() - self._mean
        if priority is Priority.LOG_IN:
            latest_start = min(latest_start, self._max_wait)
        if is_full or (wait > 0 and wait > latest_start):
            raise self._refuse(wait)

    def _refuse(self, wait: float) -> Overloaded:
        """Count a refusal; return the error, with the time until the queue is empty."""
        self._refused += 1
        seconds = max(math.ceil(wait), MIN_RETRY_DELAY_SECONDS)
        return Overloaded(timedelta(seconds=seconds))

    def _leave(self, priority: Priority, jobs: Sequence[_Job]) -> None:
        """Remove from the queue the jobs that have no caller any more."""
        cancelled = {job for job in jobs if job.done.cancel() or job.done.cancelled()}
        if cancelled:
            with self._changed:
                waiting = self._waiting[priority]
                self._waiting[priority] = deque(
                    job for job in waiting if job not in cancelled
                )

    def _serve(self) -> None:
        while job := self._next():
            if not job.done.set_running_or_notify_cancel():
                continue
            begin = monotonic()
            self._on_wait(begin - job.queued_at)
            if self._is_too_late(job, begin):
                job.done.set_exception(DeadlineExceeded())
                continue
            try:
                job.done.set_result(job.work())
            except Exception as error:
                job.done.set_exception(error)
            self._note_duration(monotonic() - begin)

    def _is_too_late(self, job: _Job, now: float) -> bool:
        """Return whether a job cannot end before its deadline.

        A job that has hardly waited runs anyway: the mean needs new durations.
        """
        waited = now - job.queued_at > self._mean
        return now > job.due or (waited and now + self._mean > job.due)

    def _note_duration(self, seconds: float) -> None:
        with self._changed:
            weight = _WEIGHT if self._mean else 1.0
            self._mean += weight * (seconds - self._mean)

    def _next(self) -> _Job | None:
        """Wait for the next job, by priority; None when the pool has closed."""
        with self._changed:
            self._free += 1
            while self._open and not any(self._waiting.values()):
                self._changed.wait()
            self._free -= 1
            if not self._open:
                return None
            return next(jobs for jobs in self._waiting.values() if jobs).popleft()


def _usable_cores() -> int:
    """Return the cores that this process may use; it may be pinned to some of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
