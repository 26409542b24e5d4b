"""Supervisor: keeps n workers running, restarts them one by one, drains them together.

It imports neither grpc nor the application: it stays small, and it starts workers as
new interpreters.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from server.cli.workers.backoff import Backoff
from server.cli.workers.control import Assignment
from server.cli.workers.process import WorkerProcess

STATE_POLL_SECONDS = 0.02
START_TIMEOUT_SECONDS = 60.0  # of a worker that is to replace one that serves
log = structlog.get_logger()
StartWorker = Callable[[], Awaitable[WorkerProcess]]


class WorkerFailed(Exception):
    """A worker cannot start for a reason that a restart cannot fix."""


@dataclass(eq=False, slots=True)
class _Slot:
    """The place of one worker, whichever process fills it."""

    assignment: Assignment
    worker: WorkerProcess
    backoff: Backoff = field(default_factory=Backoff)
    # Held while the worker is replaced, by the restart after a crash or by another.
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    was_ready: bool = False


class Supervisor:
    """Runs one worker for each assignment, and a spare process.

    The spare has imported the application, so that it replaces a crashed worker at
    once. `stop_timeout` bounds the drain; workers that take longer are killed.
    """

    def __init__(
        self,
        start: StartWorker,
        assignments: list[Assignment],
        stop_timeout: timedelta,
    ) -> None:
        self._start = start
        self._assignments = assignments
        self._stop_timeout = stop_timeout
        self._slots: list[_Slot] = []
        self._spare: WorkerProcess | None = None
        self._temporaries: set[WorkerProcess] = set()
        self._spare_needed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._restart_requested = asyncio.Event()
        self._failure = ""

    async def run(self, listening: Callable[[], None]) -> bool:
        """Run the workers until `stop`; return whether all ended well.

        Call `listening` once all of them listen. Raises WorkerFailed.
        """
        try:
            for assignment in self._assignments:
                worker = await self._start()
                worker.assign(assignment)
                self._slots.append(_Slot(assignment, worker))
            async with asyncio.TaskGroup() as group:
                work = [self._keep(slot) for slot in self._slots]
                work += [self._announce(listening), self._keep_spare()]
                work += [self._restart_on_request()]
                tasks = [group.create_task(task) for task in work]
                await self._stopping.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await self._drain()
        if self._failure:
            raise WorkerFailed(self._failure)
        return all(slot.worker.succeeded for slot in self._slots)

    def stop(self) -> None:
        """Drain all workers together."""
        self._stopping.set()

    def kill(self) -> None:
        """End all workers at once."""
        for worker in self._all():
            worker.signal(signal.SIGKILL)

    def restart(self) -> None:
        """Replace one worker after another, each when the new one is ready."""
        self._restart_requested.set()

    def _all(self) -> list[WorkerProcess]:
        spare = [self._spare] if self._spare else []
        return [*(slot.worker for slot in self._slots), *self._temporaries, *spare]

    async def _announce(self, listening: Callable[[], None]) -> None:
        await self._until_all(lambda worker: worker.listening)
        listening()

    async def _keep_spare(self) -> None:
        """Start a spare when there is none and no worker is starting."""
        while True:
            await self._until_all(lambda worker: worker.ready)
            self._spare_needed.clear()
            try:
                spare = await self._start()
            except OSError:  # a crashed worker is replaced without one, more slowly
                log.exception("spare process not started")
            else:
                self._spare = spare
                if self._spare_needed.is_set():  # discarded while it started
                    self._discard_spare()
            await self._spare_needed.wait()

    def _discard_spare(self) -> None:
        """End a spare that imported an earlier state of the program."""
        if self._spare:
            self._spare.signal(signal.SIGTERM)
        self._spare = None
        self._spare_needed.set()

    async def _until_all(self, state: Callable[[WorkerProcess], asyncio.Event]) -> None:
        """Wait until the worker of each slot, which may change, has a state."""
        while not all(  # noqa: ASYNC110 - a slot may get another worker
            state(slot.worker).is_set() for slot in self._slots
        ):
            await asyncio.sleep(STATE_POLL_SECONDS)

    async def _keep(self, slot: _Slot) -> None:
        """Replace the worker of a slot whenever it ends by itself."""
        clock = asyncio.get_running_loop().time
        while True:
            worker, started_at = slot.worker, clock()
            await worker.wait_until(worker.replaced)
            if worker.replaced.is_set():  # it may also have ended already
                continue
            slot.was_ready |= worker.ready.is_set()
            if worker.failure and not slot.was_ready:
                self._failure = worker.failure
                self.stop()
                return
            uptime = timedelta(seconds=clock() - started_at)
            delay = slot.backoff.next_delay(uptime, random.random())  # noqa: S311
            _log_end(slot.assignment, worker, delay)
            await asyncio.sleep(delay.total_seconds())
            async with slot.changing:
                if slot.worker is worker:
                    await self._refill(slot)

    async def _refill(self, slot: _Slot) -> None:
        try:
            slot.worker = await self._take_spare()
            slot.worker.assign(slot.assignment)
        except OSError:  # no memory or file descriptor: the next attempt waits longer
            log.exception("worker not started", number=slot.assignment.number)

    async def _take_spare(self) -> WorkerProcess:
        """Return a process without an assignment."""
        spare, self._spare = self._spare, None
        self._spare_needed.set()
        if spare is None or spare.ended.is_set():
            return await self._start()
        return spare

    async def _restart_on_request(self) -> None:
        while True:
            await self._restart_requested.wait()
            self._restart_requested.clear()
            log.info("restarting workers")
            for slot in self._slots:
                if not await self._replace(slot):
                    break  # the next one would fail for the same reason
            else:
                self._discard_spare()
                log.info("workers restarted")

    async def _replace(self, slot: _Slot) -> bool:
        """Start a new worker, and stop the old one if the new one becomes ready."""
        async with slot.changing:
            try:
                new, old = await self._start(), slot.worker
            except OSError:
                log.exception("worker not started", number=slot.assignment.number)
                return False
            with self._temporary(new):
                new.assign(slot.assignment)
                if not await new.wait_until(new.ready, START_TIMEOUT_SECONDS):
                    await self._give_up(new, slot.assignment)
                    return False
            slot.worker = new
        with self._temporary(old):
            old.replace()
            await self._wait_for_end(old)
        return True

    @contextmanager
    def _temporary(self, worker: WorkerProcess) -> Iterator[None]:
        """Drain a worker that fills no slot with the others; forget it at the end."""
        self._temporaries.add(worker)
        yield
        self._temporaries.discard(worker)  # not after a cancellation: it still runs

    async def _give_up(self, new: WorkerProcess, assignment: Assignment) -> None:
        """Stop a worker that does not become ready."""
        cause = new.failure or (new.exit_status if new.ended.is_set() else "")
        log.error(
            "new worker not ready: the old worker continues",
            number=assignment.number,
            cause=cause or f"not ready within {START_TIMEOUT_SECONDS:g} s",
        )
        new.signal(signal.SIGTERM)
        await self._wait_for_end(new)

    async def _wait_for_end(self, *workers: WorkerProcess) -> None:
        """Wait until workers have ended; kill those that take too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._stop_timeout.total_seconds()):
                for worker in workers:
                    await worker.ended.wait()
        for worker in workers:
            worker.signal(signal.SIGKILL)
            await worker.ended.wait()

    async def _drain(self) -> None:
        """Stop all workers together."""
        workers = self._all()
        for worker in workers:
            worker.signal(signal.SIGTERM)
        await self._wait_for_end(*workers)


def _log_end(assignment: Assignment, worker: WorkerProcess, delay: timedelta) -> None:
    log.error(
        "worker ended",
        number=assignment.number,
        pid=worker.pid,
        status=worker.exit_status,
        restart_in_seconds=round(delay.total_seconds(), 2),
        **({"cause": worker.failure} if worker.failure else {}),
    )
