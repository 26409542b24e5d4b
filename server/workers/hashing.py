"""HashingPool: threads that hash passwords; log-ins are served before batches.

Argon2 and bcrypt release the GIL, so that the event loop runs meanwhile.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from threading import Condition, Thread
from typing import Any, TypeVar

from server.domain.errors import Overloaded

Result = TypeVar("Result")
RETRY_AFTER = timedelta(seconds=1)
QUEUE_SIZE = 100  # log-ins that may wait for each thread
MAX_BATCH_SIZE = 100  # accounts created by one call
MAX_WAIT = timedelta(seconds=5)  # of a log-in


def _usable_cpus() -> int:
    """Return how many CPUs this process may run on: workers are pinned to a share."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Priority(IntEnum):
    """The lower is served first."""

    LOG_IN = 0
    BATCH = 1


@dataclass(eq=False, slots=True)
class _Job:
    work: Callable[[], Any]
    done: Future[Any] = field(default_factory=Future)


class HashingPool:
    """Runs jobs in threads of its own, by default one less than there are cores.

    With as many threads as cores a log-in flood doubles the latency of everything
    else. For each thread at most `queue` log-ins wait, none for longer than
    `max_wait`, and at most `batch_queue` jobs of batches; beyond that Overloaded is
    raised. A cancelled caller leaves the queue; a job that has begun runs to its end.
    """

    def __init__(
        self,
        threads: int | None = None,
        *,
        queue: int = QUEUE_SIZE,
        batch_queue: int = 2 * MAX_BATCH_SIZE,
        max_wait: timedelta = MAX_WAIT,
    ) -> None:
        threads = threads or max(1, _usable_cpus() - 1)
        self._capacity = {
            Priority.LOG_IN: threads * queue,
            Priority.BATCH: threads * batch_queue,
        }
        self._max_wait = max_wait.total_seconds()
        self._waiting: dict[Priority, deque[_Job]] = {
            priority: deque() for priority in Priority
        }
        self._free = 0
        self._open = True
        self._changed = Condition()
        self._threads = [
            Thread(target=self._serve, name=f"hash-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run the job of a log-in. Raises Overloaded."""
        (job,) = self._admit(Priority.LOG_IN, [work])
        outcome = asyncio.wrap_future(job.done)
        try:
            await asyncio.wait((outcome,), timeout=self._max_wait)
            if job.done.cancel():
                raise Overloaded(RETRY_AFTER)
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
            waiting = self._waiting[priority]
            if len(waiting) + len(jobs) > self._capacity[priority] + self._free:
                raise Overloaded(RETRY_AFTER)
            waiting.extend(jobs)
            self._changed.notify(len(jobs))
        return jobs

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
            try:
                job.done.set_result(job.work())
            except Exception as error:
                job.done.set_exception(error)

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
