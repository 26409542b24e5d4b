"""UserWatch, over changes in memory."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from server.domain.accounts.user_watch import Change, UserChangeEvent, UserWatch
from server.domain.errors import ResumeTokenExpired, ServerStopping
from server.domain.event_buffer import EventBuffer
from server.domain.outbox.entries import EventType
from tests.fakes import Clock

WEEK = timedelta(days=7)


class InMemoryChangeLog:
    """Changes in memory, settled by the test."""

    def __init__(self) -> None:
        self.settled: int | None = None
        self.buffer: EventBuffer[int] = EventBuffer(1)
        self.stored: list[Change] = []
        self.restored: datetime | None = None

    def settle(self, *ids: int) -> None:
        self.stored += [Change(n, EventType.USER_UPDATED, n, None) for n in ids]
        self.settled = max(ids, default=self.settled or 0)
        self.buffer.extend([self.settled])

    async def newest(self) -> int:
        return max((change.id for change in self.stored), default=0)

    async def restored_at(self) -> datetime | None:
        return self.restored

    async def chunk(self, after: int, size: int) -> Sequence[Change]:
        return [change for change in self.stored if change.id > after][:size]


def watch(
    log: InMemoryChangeLog, clock: Clock, heartbeat: timedelta = timedelta(60)
) -> UserWatch:
    return UserWatch(log, WEEK, clock, heartbeat, chunk_size=2)


def short(message: UserChangeEvent) -> int:
    return message.change.id if message.change else 0


async def test_user_stream_without_token_begins_at_settled_entry() -> None:
    """It waits for the first read of the process."""
    log = InMemoryChangeLog()
    stream = watch(log, Clock()).stream("")
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    log.settle(1, 2, 3)
    assert (await first).resume_token.startswith("3.")
    log.settle(4, 5, 6, 7, 8)
    assert [short(await anext(stream)) for _ in range(5)] == [4, 5, 6, 7, 8]


async def test_token_of_the_time_before_a_restore_expires() -> None:
    """It may count entries that the database has lost; later tokens do not."""
    log, clock = InMemoryChangeLog(), Clock()
    log.settle(1)
    token = (await anext(watch(log, clock).stream(""))).resume_token
    log.restored = clock.now
    with pytest.raises(ResumeTokenExpired):
        await anext(watch(log, clock).stream(token))
    clock.advance(1)
    token = (await anext(watch(log, clock).stream(""))).resume_token
    assert await anext(watch(log, clock).stream(token))


async def test_user_stream_heartbeat_renews_token() -> None:
    """A client can resume after a long time without changes."""
    log, clock = InMemoryChangeLog(), Clock()
    log.settle(1)
    stream = watch(log, clock, timedelta(milliseconds=5)).stream("")
    old = await anext(stream)
    clock.advance(WEEK.total_seconds())
    new = await anext(stream)
    with pytest.raises(ResumeTokenExpired):
        await anext(watch(log, clock).stream(old.resume_token))
    resumed = watch(log, clock).stream(new.resume_token)
    assert short(await anext(resumed)) == 0
    log.settle(2)
    assert short(await anext(resumed)) == 2


async def test_user_stream_ends_when_server_stops() -> None:
    log = InMemoryChangeLog()
    log.settle(1)
    stream = watch(log, Clock()).stream("")
    await anext(stream)
    log.buffer.close()
    with pytest.raises(ServerStopping):
        await anext(stream)
