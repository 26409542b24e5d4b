"""Tails, and watching revocations from one."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from server.domain.errors import InvalidFields, ServerStopping, StoreUnavailable
from server.domain.event_buffer import STALE_AFTER, EventBuffer
from server.domain.revocation_watch import (
    RevocationEvent,
    RevocationWatch,
    Revoked,
    Sign,
)
from tests.fakes import NOON

SOON = timedelta(milliseconds=10)


class Log:
    """Revocations in memory; every one is written by a transaction of its number."""

    def __init__(self, most: int = 100, stale_after: timedelta = STALE_AFTER) -> None:
        self.buffer: EventBuffer[Revoked] = EventBuffer(most, stale_after)
        self.kept: list[Revoked] = []
        self.buffer.extend([])

    def write(self, *numbers: int) -> None:
        new = [Revoked(n, f"session{n}", NOON, n) for n in numbers]
        self.kept += new
        self.buffer.extend(new)

    async def resume_from(self, token: int) -> tuple[int, int]:
        return token, max((revoked.token for revoked in self.kept), default=0)

    async def chunk(self, since: int, after_id: int, size: int) -> Sequence[Revoked]:
        found = [r for r in self.kept if r.id > after_id and r.token >= since]
        return found[:size]


def short(told: RevocationEvent) -> object:
    return told.event.id if isinstance(told.event, Revoked) else told.event


async def test_what_is_in_force_then_a_sign_then_what_comes() -> None:
    """In chunks; what is written while they are read comes after the sign."""
    log = Log()
    log.write(1, 2, 3)
    stream = RevocationWatch(log, chunk=2).stream("")
    seen = [short(await anext(stream))]
    log.write(4)
    seen += [short(await anext(stream)) for _ in range(5)]
    assert seen == [1, 2, 3, 4, Sign.CAUGHT_UP, 4]  # twice does no harm
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    log.write(5)
    assert short(await waiting) == 5


async def test_a_token_leaves_out_what_older_transactions_wrote() -> None:
    log = Log()
    log.write(1, 2, 3)
    stream = RevocationWatch(log).stream("3")
    assert [short(await anext(stream)) for _ in range(2)] == [3, Sign.CAUGHT_UP]


@pytest.mark.parametrize("token", ["x", "-1", "1.5", "9" * 19, "\u0661", "1\n"])
async def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(InvalidFields):
        await anext(RevocationWatch(Log()).stream(token))


async def test_silence_is_told_from_blindness() -> None:
    """A heartbeat says that the service still looks; without a look there is none."""
    stream = RevocationWatch(Log(), SOON).stream("")
    seen = [short(await anext(stream)) for _ in range(3)]
    assert seen == [Sign.CAUGHT_UP, Sign.HEARTBEAT, Sign.HEARTBEAT]
    stale_after = RevocationWatch(Log(stale_after=SOON / 2), SOON).stream("")
    assert short(await anext(stale_after)) is Sign.CAUGHT_UP
    with pytest.raises(StoreUnavailable):
        await anext(stale_after)


async def test_a_watcher_too_slow_for_the_tail_reads_the_log_again() -> None:
    """Nothing is kept for the slow, and nothing is lost on them."""
    log = Log(most=2)
    stream = RevocationWatch(log).stream("")
    assert short(await anext(stream)) is Sign.CAUGHT_UP
    log.write(1, 2, 3, 4)
    assert [short(await anext(stream)) for _ in range(4)] == [1, 2, 3, 4]
    log.write(5)
    assert short(await anext(stream)) == 5


async def test_stopping_ends_every_watch() -> None:
    """Those that wait, those that do not, and those that come later."""
    log = Log()
    waiting = RevocationWatch(log).stream("")
    assert short(await anext(waiting)) is Sign.CAUGHT_UP
    ended = asyncio.ensure_future(anext(waiting))
    await asyncio.sleep(0)
    log.buffer.close()
    with pytest.raises(ServerStopping):
        await ended
    with pytest.raises(ServerStopping):
        await anext(RevocationWatch(log).stream(""))
