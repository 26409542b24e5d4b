"""supervise: tasks are restarted, and cancelled at the end."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta

from server.domain.errors import StoreUnavailable
from server.workers.supervisor import Subscription, supervise
from tests.logs import captured_lines

NO_DELAY = timedelta(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition sets no event
            await asyncio.sleep(0)


def task(run: Callable[[], Awaitable[None]]) -> Subscription:
    return Subscription("the task", run)


async def test_supervise_restarts_task_that_fails() -> None:
    """A process must not go on with stale data because a bug ended a task."""
    starts = []

    async def fail() -> None:
        starts.append(1)
        raise ValueError("unforeseen")

    with captured_lines(task="the task") as lines:
        async with supervise(task(fail), restart_delay=NO_DELAY):
            await until(lambda: len(starts) > 3)
    assert {line["event"] for line in lines} == {"background task failed"}


async def test_supervise_restarts_task_that_returns() -> None:
    starts = []
    restarts: Counter[str] = Counter()

    async def end() -> None:
        starts.append(1)

    async with supervise(task(end), restart_delay=NO_DELAY, restarts=restarts):
        assert restarts == {"the task": 0}  # so that a first restart is an increase
        await until(lambda: len(starts) > 3)
    assert restarts["the task"] == len(starts) - 1


async def test_supervise_logs_outage_once() -> None:
    """Not a line for every attempt to reconnect."""
    starts = []

    async def disconnect() -> None:
        starts.append(1)
        raise StoreUnavailable from OSError("refused")

    with captured_lines(task="the task") as lines:
        async with supervise(task(disconnect), restart_delay=NO_DELAY):
            await until(lambda: len(starts) > 3)
    (line,) = lines
    assert (line["event"], line["log_level"]) == (
        "background task interrupted",
        "warning",
    )
    assert "refused" in line["cause"]


async def test_supervise_ends_task_that_swallows_cancellation() -> None:
    """redis-py swallows one while it connects."""

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)

    async with asyncio.timeout(10), supervise(task(stubborn)):
        await asyncio.sleep(0)
