"""Poller: refreshes at an interval and on a wake-up, also after a failure."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from server.domain.errors import StoreUnavailable
from server.workers.poller import Poller
from server.workers.supervisor import supervise
from tests.logs import captured_lines

NEVER = timedelta(hours=1)


@dataclass
class RefreshSource:
    """Counts its refreshes; fails with the errors given, in their order."""

    errors: list[Exception | None] = field(default_factory=list)
    count: int = 0
    refreshed: asyncio.Event = field(default_factory=asyncio.Event)

    async def refresh(self) -> None:
        self.count += 1
        self.refreshed.set()
        if self.errors and (error := self.errors.pop(0)):
            raise error

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.count < count:
                self.refreshed.clear()
                await self.refreshed.wait()


@asynccontextmanager
async def polling(poller: Poller) -> AsyncIterator[None]:
    async with supervise(poller):
        yield


async def test_poller_refreshes_at_its_interval() -> None:
    source = RefreshSource()
    async with polling(Poller("p", source.refresh, timedelta(milliseconds=1))):
        await source.reach(3)


async def test_poller_asks_for_a_computed_interval_after_each_refresh() -> None:
    source = RefreshSource()
    intervals = [NEVER, timedelta(0), timedelta(0)]
    async with polling(Poller("p", source.refresh, intervals.pop)):
        await source.reach(3)
    assert len(intervals) <= 1


async def test_poller_refreshes_when_woken() -> None:
    """A wake-up during a refresh is not lost: it leads to another one."""
    source, wake = RefreshSource(), asyncio.Event()
    async with polling(Poller("p", source.refresh, NEVER, wake)):
        await source.reach(1)
        wake.set()
        await source.reach(2)

    slow, wake = RefreshSource(), asyncio.Event()

    async def refresh_and_wake() -> None:
        await slow.refresh()
        if slow.count == 1:
            wake.set()

    async with polling(Poller("p", refresh_and_wake, NEVER, wake)):
        await slow.reach(2)


async def test_poller_merges_wakeups_within_its_minimum_interval() -> None:
    source, wake = RefreshSource(), asyncio.Event()
    poller = Poller(
        "p", source.refresh, NEVER, wake, min_interval=timedelta(milliseconds=50)
    )
    async with polling(poller):
        await source.reach(1)
        for _ in range(20):
            wake.set()
            await asyncio.sleep(0)
        await source.reach(2)
        await asyncio.sleep(0.01)
        assert source.count == 2


async def test_poller_continues_after_failure_and_logs_it_once() -> None:
    """One line when an outage begins and one when it ends."""
    away = StoreUnavailable()
    source = RefreshSource([away, away, away, None])
    poller = Poller("the poller", source.refresh, timedelta(milliseconds=1))
    with captured_lines(task="the poller") as lines:
        async with polling(poller):
            await source.reach(5)
    events = [(line["event"], line["log_level"]) for line in lines]
    assert events == [("poll failed", "warning"), ("poll recovered", "info")]


async def test_poller_logs_unforeseen_error_with_its_trace() -> None:
    source = RefreshSource([ValueError("unforeseen")])
    poller = Poller("p", source.refresh, timedelta(milliseconds=1))
    with captured_lines(task="p") as lines:
        async with polling(poller):
            await source.reach(2)
    assert isinstance(lines[0]["exc_info"], ValueError)
