"""Threads for hashing: log-ins go before batches, and only so many wait.

Argon2 and bcrypt release the GIL, so that the loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
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
COME_AGAIN = timedelta(seconds=1)


class Urgency(IntEnum):
    """The lower is served first."""

    LOG_IN = 0
    BATCH = 1


@dataclass(eq=False, slots=True)
class _Job:
    work: Callable[[], Any]
    done: Future[Any] = field(default_factory=Future)


class HashingPool:
    """Does work in `threads` of its own.

    For each thread at most `queue` pieces of urgent work wait, none for longer than
    `patience`, and at most `batches` pieces of other work; beyond that Overloaded is
    raised. A caller who is gone leaves the queue; what runs already runs to its end.
    """

    def __init__(
        self, threads: int, *, queue: int, batches: int, patience: timedelta
    ) -> None:
        self._most = {
            Urgency.LOG_IN: threads * queue,
            Urgency.BATCH: threads * batches,
        }
        self._patience = patience.total_seconds()
        self._waiting: dict[Urgency, deque[_Job]] = {kind: deque() for kind in Urgency}
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
        """Do one piece of urgent work. Raises Overloaded."""
        (job,) = self._admit(Urgency.LOG_IN, [work])
        outcome = asyncio.wrap_future(job.done)
        try:
            await asyncio.wait((outcome,), timeout=self._patience)
            if job.done.cancel():
                raise Overloaded(COME_AGAIN)
            result: Result = await outcome
        finally:
            self._leave(Urgency.LOG_IN, [job])
        return result

    async def run_all(self, works: Iterable[Callable[[], Result]]) -> list[Result]:
        """Do work that may wait, all of it or none. Raises Overloaded."""
        jobs = self._admit(Urgency.BATCH, works)
        try:
            waiting = (asyncio.wrap_future(job.done) for job in jobs)
            results: list[Result] = await asyncio.gather(*waiting)
        finally:
            self._leave(Urgency.BATCH, jobs)
        return results

    def _admit(
        self, urgency: Urgency, works: Iterable[Callable[[], Any]]
    ) -> Sequence[_Job]:
        jobs = [_Job(work) for work in works]
        with self._changed:
            waiting = self._waiting[urgency]
            if len(waiting) + len(jobs) > self._most[urgency] + self._free:
                raise Overloaded(COME_AGAIN)
            waiting.extend(jobs)
            self._changed.notify(len(jobs))
        return jobs

    def _leave(self, urgency: Urgency, jobs: Sequence[_Job]) -> None:
        """Take out of the queue what nobody waits for any more."""
        gone = {job for job in jobs if job.done.cancel() or job.done.cancelled()}
        if gone:
            with self._changed:
                kept = [job for job in self._waiting[urgency] if job not in gone]
                self._waiting[urgency] = deque(kept)

    def _serve(self) -> None:
        while job := self._next():
            if not job.done.set_running_or_notify_cancel():
                continue
            try:
                job.done.set_result(job.work())
            except Exception as error:
                job.done.set_exception(error)

    def _next(self) -> _Job | None:
        """Wait for the most urgent work; None when the pool has closed."""
        with self._changed:
            self._free += 1
            while self._open and not any(self._waiting.values()):
                self._changed.wait()
            self._free -= 1
            if not self._open:
                return None
            return next(jobs for jobs in self._waiting.values() if jobs).popleft()

    def close(self) -> None:
        """End the pool once its present work is done; what waits is cancelled."""
        with self._changed:
            self._open = False
            left = [job for jobs in self._waiting.values() for job in jobs]
            self._changed.notify_all()
        for job in left:
            job.done.cancel()
        for thread in self._threads:
            thread.join()
