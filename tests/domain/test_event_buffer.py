"""EventBuffer, and the stream of revocations that reads from one."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from server.domain.auth.revocation_watch import (
    Marker,
    Revocation,
    RevocationEvent,
    RevocationWatch,
)
from server.domain.errors import InvalidFields, ServerStopping, StoreUnavailable
from server.domain.event_buffer import STALE_AFTER, EventBuffer
from tests.fakes import NOON

SHORT = timedelta(milliseconds=10)


class InMemoryRevocationLog:
    """Revocations in memory; each is written by the transaction of its number."""

    def __init__(
        self, max_items: int = 100, stale_after: timedelta = STALE_AFTER
    ) -> None:
        self.buffer: EventBuffer[Revocation] = EventBuffer(max_items, stale_after)
        self.stored: list[Revocation] = []
        self.buffer.extend([])

    def write(self, *numbers: int) -> None:
        new = [Revocation(n, f"session{n}", NOON, n) for n in numbers]
        self.stored += new
        self.buffer.extend(new)

    async def resume_from(self, token: int) -> tuple[int, int]:
        return token, max((revoked.token for revoked in self.stored), default=0)

    async def chunk(self, since: int, after_id: int, size: int) -> Sequence[Revocation]:
        chunk = [r for r in self.stored if r.id > after_id and r.token >= since]
        return chunk[:size]


def short(message: RevocationEvent) -> object:
    event = message.event
    return event.id if isinstance(event, Revocation) else event


async def test_revocation_stream_sends_stored_then_marker_then_new() -> None:
    """In chunks; a revocation written meanwhile may be sent twice."""
    log = InMemoryRevocationLog()
    log.write(1, 2, 3)
    stream = RevocationWatch(log, chunk_size=2).stream("")
    seen = [short(await anext(stream))]
    log.write(4)
    seen += [short(await anext(stream)) for _ in range(5)]
    assert seen == [1, 2, 3, 4, Marker.CAUGHT_UP, 4]
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    log.write(5)
    assert short(await waiting) == 5


async def test_revocation_stream_resumes_after_older_transactions() -> None:
    log = InMemoryRevocationLog()
    log.write(1, 2, 3)
    stream = RevocationWatch(log).stream("3")
    assert [short(await anext(stream)) for _ in range(2)] == [3, Marker.CAUGHT_UP]


@pytest.mark.parametrize("token", ["x", "-1", "1.5", "9" * 19, "\u0661", "1\n"])
async def test_revocation_stream_refuses_invalid_token(token: str) -> None:
    with pytest.raises(InvalidFields):
        await anext(RevocationWatch(InMemoryRevocationLog()).stream(token))


async def test_revocation_stream_sends_heartbeat_only_while_reads_succeed() -> None:
    """Without a successful read the stream ends with StoreUnavailable."""
    stream = RevocationWatch(InMemoryRevocationLog(), SHORT).stream("")
    seen = [short(await anext(stream)) for _ in range(3)]
    assert seen == [Marker.CAUGHT_UP, Marker.HEARTBEAT, Marker.HEARTBEAT]
    stale_after = RevocationWatch(
        InMemoryRevocationLog(stale_after=SHORT / 2), SHORT
    ).stream("")
    assert short(await anext(stale_after)) is Marker.CAUGHT_UP
    with pytest.raises(StoreUnavailable):
        await anext(stale_after)


async def test_revocation_stream_reads_store_when_it_falls_behind_buffer() -> None:
    """A slow stream uses no memory and misses no event."""
    log = InMemoryRevocationLog(max_items=2)
    stream = RevocationWatch(log).stream("")
    assert short(await anext(stream)) is Marker.CAUGHT_UP
    log.write(1, 2, 3, 4)
    assert [short(await anext(stream)) for _ in range(4)] == [1, 2, 3, 4]
    log.write(5)
    assert short(await anext(stream)) == 5


async def test_event_buffer_close_ends_every_stream() -> None:
    """One that waits, and one that is opened later."""
    log = InMemoryRevocationLog()
    waiting = RevocationWatch(log).stream("")
    assert short(await anext(waiting)) is Marker.CAUGHT_UP
    ended = asyncio.ensure_future(anext(waiting))
    await asyncio.sleep(0)
    log.buffer.close()
    with pytest.raises(ServerStopping):
        await ended
    with pytest.raises(ServerStopping):
        await anext(RevocationWatch(log).stream(""))
