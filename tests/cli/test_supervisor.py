"""The supervisor: workers are restarted, replaced and drained, whatever they serve."""

import asyncio
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest

from server.cli.workers.backoff import MAX_DELAY, STABLE_AFTER, Backoff
from server.cli.workers.control import Assignment
from server.cli.workers.process import WorkerProcess
from server.cli.workers.running import assignments, serving_metrics
from server.cli.workers.supervisor import StartWorker, Supervisor, WorkerFailed
from server.config import load
from server.observability.metrics.workers import WorkerFiles
from tests.logs import captured_lines

SECONDS = 20
FAKE_WORKER = "tests.cli.fake_worker"
NO_UPTIME = timedelta(0)


@dataclass(slots=True)
class Workers:
    """A running supervisor of fake workers, which record in a folder what they do."""

    supervisor: Supervisor
    folder: Path
    running: "asyncio.Task[bool]" = field(init=False)

    def started(self, number: int) -> list[int]:
        """Return the process ids of a worker's processes, the newest last."""
        files = [p for p in self.folder.glob(f"{number}.*") if p.name.count(".") == 1]
        files.sort(key=lambda path: path.stat().st_mtime_ns)
        return [int(path.suffix[1:]) for path in files]

    def ended(self, event: str) -> set[int]:
        """Return the process ids of the workers that ended like this."""
        return {int(p.name.split(".")[1]) for p in self.folder.glob(f"*.*.{event}")}


@asynccontextmanager
async def supervised(
    folder: Path,
    mode: str = "serve",
    count: int = 2,
    stop_timeout: float = 0.5,
    intercept: Callable[[StartWorker], StartWorker] = lambda start: start,
) -> AsyncIterator[Workers]:
    listening = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as http:
        start = partial(WorkerProcess.start, (mode, str(folder)), http, FAKE_WORKER)
        numbers = [Assignment(number) for number in range(1, count + 1)]
        limit = timedelta(seconds=stop_timeout)
        supervisor = Supervisor(intercept(start), numbers, limit)
        workers = Workers(supervisor, folder)
        workers.running = asyncio.create_task(supervisor.run(listening.set))
        if mode != "crash":
            waits = {workers.running, asyncio.create_task(listening.wait())}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        try:
            yield workers
        finally:
            supervisor.stop()
            async with asyncio.timeout(SECONDS):
                await asyncio.wait([workers.running])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.01)


async def test_supervisor_drains_all_workers(tmp_path: Path) -> None:
    """All are stopped at the same time, and the end is a good one."""
    async with supervised(tmp_path) as workers:
        pids = {pid for number in (1, 2) for pid in workers.started(number)}
        assert len(pids) == 2
        workers.supervisor.stop()
        assert await workers.running
    assert workers.ended("stopped") == pids


async def test_supervisor_restarts_killed_worker(tmp_path: Path) -> None:
    """Under the same number, at once the first time; the others go on."""
    async with supervised(tmp_path) as workers:
        (killed,) = workers.started(1)
        with captured_lines(event="worker ended") as lines:
            os.kill(killed, signal.SIGKILL)
            await until(lambda: len(workers.started(1)) == 2)
        assert len(workers.started(2)) == 1
    (line,) = lines
    assert (line["number"], line["pid"]) == (1, killed)
    assert line["status"] == "killed by SIGKILL"
    assert line["restart_in_seconds"] == 0


async def test_supervisor_delays_restarts_of_worker_that_crashes(
    tmp_path: Path,
) -> None:
    """Each delay is longer than the one before."""
    with captured_lines(event="worker ended") as lines:
        async with supervised(tmp_path, "crash", count=1) as workers:
            await until(lambda: len(workers.started(1)) == 4)
    delays = [float(line["restart_in_seconds"]) for line in lines]
    assert delays[0] == 0 < delays[1] <= delays[2]  # jitter may make them equal
    assert lines[0]["status"] == "exit 3"


async def test_supervisor_ends_when_workers_cannot_start(tmp_path: Path) -> None:
    """One error for all workers, which a restart would only repeat."""
    (tmp_path / "fail").touch()
    async with supervised(tmp_path) as workers:
        with pytest.raises(WorkerFailed, match=r"^SETTING: must be set$"):
            await workers.running


async def test_supervisor_continues_when_later_worker_cannot_start(
    tmp_path: Path,
) -> None:
    """A fault of the settings that appears later must not end workers that serve."""
    async with supervised(tmp_path) as workers:
        await until(lambda: workers.supervisor._spare is not None)
        (tmp_path / "fail").touch()
        with captured_lines(event="worker ended") as lines:
            os.kill(workers.started(1)[0], signal.SIGKILL)
            await until(lambda: len(workers.started(1)) == 3)
        (tmp_path / "fail").unlink()
        assert lines[1]["cause"] == "SETTING: must be set"
        assert not workers.running.done()


async def test_supervisor_replaces_one_worker_after_another(tmp_path: Path) -> None:
    async with supervised(tmp_path) as workers:
        old = [*workers.started(1), *workers.started(2)]
        workers.supervisor.restart()
        await until(lambda: len(workers.ended("replaced")) == 1)
        assert workers.ended("replaced") == set(workers.started(1)[:1])
        await until(lambda: len(workers.ended("replaced")) == 2)
        assert [len(workers.started(number)) for number in (1, 2)] == [2, 2]
        assert workers.ended("replaced") == set(old)
        assert workers.ended("stopped") == set()


async def test_supervisor_keeps_workers_when_new_one_cannot_start(
    tmp_path: Path,
) -> None:
    """A rolling restart with settings that are wrong changes nothing."""
    async with supervised(tmp_path) as workers:
        (tmp_path / "fail").touch()
        event = "new worker not ready: the old worker continues"
        with captured_lines(event=event) as lines:
            workers.supervisor.restart()
            await until(lambda: len(workers.started(1)) == 2)
            await until(lambda: not workers.supervisor._temporaries)
            await asyncio.sleep(0.1)  # in which worker 2 must not be tried
        assert [line["cause"] for line in lines] == ["SETTING: must be set"]
        assert len(workers.started(2)) == 1
        assert not workers.ended("replaced")


async def test_supervisor_kills_worker_that_does_not_drain(tmp_path: Path) -> None:
    """After a timeout; the end is then not a good one."""
    async with supervised(tmp_path, "stuck", count=1) as workers:
        await until(lambda: bool(workers.started(1)))
        workers.supervisor.stop()
        assert not await workers.running


async def test_supervisor_kills_workers_on_second_signal(tmp_path: Path) -> None:
    """At once, not after the timeout of the drain."""
    async with supervised(tmp_path, "stuck", stop_timeout=10 * SECONDS) as workers:
        workers.supervisor.stop()
        await asyncio.sleep(0)
        workers.supervisor.kill()
        async with asyncio.timeout(SECONDS):
            assert not await workers.running


async def test_supervisor_kills_replaced_worker_that_does_not_end(
    tmp_path: Path,
) -> None:
    """A rolling restart goes on to the next worker."""
    async with supervised(tmp_path, "stuck") as workers:
        workers.supervisor.restart()
        await until(lambda: len(workers.started(2)) == 2)
        (old, _) = workers.started(1)
        assert not psutil.pid_exists(old)


async def test_supervisor_replaces_the_spare_with_the_workers(tmp_path: Path) -> None:
    """The program may have changed since the spare imported it."""
    async with supervised(tmp_path, count=1) as workers:
        await until(lambda: workers.supervisor._spare is not None)
        old = workers.supervisor._spare
        assert old
        workers.supervisor.restart()
        await until(lambda: workers.supervisor._spare not in (None, old))
        await until(old.ended.is_set)


async def test_spare_that_starts_during_a_restart_is_replaced(tmp_path: Path) -> None:
    """It is one of the earlier program, and no process is left behind."""
    started: list[WorkerProcess] = []
    spare_starts, restarted = asyncio.Event(), asyncio.Event()

    def intercept(start: StartWorker) -> StartWorker:
        async def slow_spare() -> WorkerProcess:
            process = await start()
            started.append(process)
            if len(started) == 2:
                spare_starts.set()
                await restarted.wait()
            return process

        return slow_spare

    async with supervised(tmp_path, count=1, intercept=intercept) as workers:
        await spare_starts.wait()
        workers.supervisor.restart()
        await until(lambda: len(workers.ended("replaced")) == 1)
        await until(lambda: not workers.supervisor._temporaries)
        restarted.set()
        await until(lambda: len(started) == 4)
        await until(lambda: workers.supervisor._spare is started[3])
        await until(started[1].ended.is_set)
    assert all(process.ended.is_set() for process in started)


async def test_replaced_worker_is_not_logged_as_crashed(tmp_path: Path) -> None:
    """Also if it has ended before the supervisor has seen that it was replaced."""
    starts: list[StartWorker] = []

    def intercept(start: StartWorker) -> StartWorker:
        starts.append(start)
        return start

    async with supervised(tmp_path, count=1, intercept=intercept) as workers:
        (slot,) = workers.supervisor._slots
        await until(lambda: workers.supervisor._spare is not None)
        new, old = await starts[0](), slot.worker
        new.assign(slot.assignment)
        assert await new.wait_until(new.ready)
        with captured_lines(event="worker ended") as lines:
            slot.worker = new
            old.replace()
            old.ended.set()
            await until(lambda: old.pid in workers.ended("replaced"))
            os.kill(new.pid, signal.SIGKILL)
            await until(lambda: len(workers.started(1)) == 3)
    assert [line["pid"] for line in lines] == [new.pid]


async def test_workers_end_with_their_supervisor(tmp_path: Path) -> None:
    """The end of the control socket is all that they see of kill -9."""
    async with supervised(tmp_path, count=1) as workers:
        (pid,) = workers.started(1)
        (slot,) = workers.supervisor._slots
        slot.worker._commands.close()
        await until(lambda: pid in workers.ended("stopped"))


def test_backoff_restarts_stable_worker_at_once() -> None:
    backoff = Backoff()
    delays = [backoff.next_delay(NO_UPTIME, 1).total_seconds() for _ in range(20)]
    assert delays[:4] == [0, 0.5, 1, 2]
    assert delays[-1] == MAX_DELAY.total_seconds()
    assert backoff.next_delay(STABLE_AFTER, 1) == timedelta(0)
    assert backoff.next_delay(NO_UPTIME, 0) == timedelta(seconds=0.25)


async def test_metrics_folder_is_private_and_removed_at_the_end() -> None:
    """One that a killed supervisor has left behind is used by no other."""
    settings = load(metrics_listen="127.0.0.1:0", workers=2)
    async with serving_metrics(settings) as (_, left_behind):
        async with serving_metrics(settings) as (option, folder):
            assert option == "--metrics-folder"
            assert folder != left_behind
            assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
            WorkerFiles.new(Path(folder)).write_final(b"")
        with pytest.raises(FileNotFoundError):
            os.stat(folder)
        assert os.listdir(left_behind) == []


def test_workers_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each CPU has one worker; none is pinned if there are fewer CPUs than workers."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    assert [a.cpus for a in assignments(2)] == [(0, 2), (1, 5)]
    assert [a.cpus for a in assignments(5)] == [()] * 5
    assert [a.number for a in assignments(3)] == [1, 2, 3]
