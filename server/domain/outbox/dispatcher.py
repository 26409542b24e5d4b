"""Delivering what the outbox holds, one entry after the other, at least once.

An entry that cannot be delivered comes again after 1 s, 2 s, 4 s and so on; after
`MOST_ATTEMPTS` it is dead. Where the receiver of all mails is away nothing is
counted: the mails wait together, and what is no mail goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from server.domain.clock import Clock
from server.domain.errors import StoreUnavailable
from server.domain.outbox.entries import Entry

log = structlog.get_logger()
BATCH = 10
MOST_ATTEMPTS = 15
LEASE = timedelta(seconds=5)
SECONDS_BETWEEN_RENEWALS = 1.5
SECONDS_TO_DELIVER = 60.0
SECONDS_TO_REST = 5.0
FIRST_PAUSE = timedelta(seconds=1)
LONGEST_PAUSE = timedelta(hours=1)
LONGEST_ABSENCE = timedelta(seconds=30)

# Gives whether the entry was delivered; False if there turned out to be nothing to
# deliver. Raises MailerUnavailable; whatever else it raises counts as a failed attempt.
Route = Callable[[Entry], Awaitable[bool]]
Jitter = Callable[[], float]


class MailerUnavailable(Exception):
    """Nothing can be sent to anybody at present; no fault of what is sent."""


class OutboxStore(Protocol):
    """Keeps entries. Delays are counted by its own clock, the same for everybody."""

    async def claim(
        self, size: int, lease: timedelta, *, mails: bool
    ) -> Sequence[Entry]:
        """Give entries that are due and nobody else's for as long as the lease."""

    async def renew(self, ids: Sequence[int], lease: timedelta) -> None:
        """Begin the lease of claimed entries anew."""

    async def release(self, ids: Sequence[int]) -> None:
        """Give claimed entries up, as if they had never been tried."""

    async def delivered(self, entry_id: int, now: datetime) -> None:
        """Note that an entry is delivered; who got a mail is forgotten."""

    async def drop(self, entry_id: int) -> None:
        """Forget an entry that came to nothing."""

    async def retry(self, entry_id: int, delay: timedelta, cause: str) -> None:
        """Let an entry come again."""

    async def dead_letter(self, entry_id: int, now: datetime, cause: str) -> None:
        """Let an entry wait for an operator."""

    async def wait(self, seconds: float) -> None:
        """Wait for new entries, at most this long."""


def pause_after(failures: int, longest: timedelta, jitter: float) -> timedelta:
    """Give the pause after so many failures; `jitter` from 0 to 1 spreads it."""
    doubled: timedelta = FIRST_PAUSE * 2 ** min(failures - 1, 20)
    return min(doubled, longest) * (0.5 + jitter / 2)


class OutboxDispatcher:
    """Claims entries and has them carried, for as long as the process serves.

    Looks for new ones, and for a store that was away, every `pause` seconds.
    """

    def __init__(
        self,
        store: OutboxStore,
        route: Route,
        clock: Clock,
        jitter: Jitter,
        pause: float = 1.0,
    ) -> None:
        self._store = store
        self._route = route
        self._clock = clock
        self._jitter = jitter
        self._pause = pause
        self._absences = 0
        self._away_until: datetime | None = None
        self._draining = False
        self._busy = asyncio.Lock()

    async def run(self) -> None:
        """Deliver what is due, and what comes, until cancelled."""
        while not self._draining:
            try:
                if await self.deliver() < BATCH:
                    await self._store.wait(self._pause)
            except StoreUnavailable as error:
                log.warning("the outbox cannot be read", cause=repr(error.__cause__))
                await asyncio.sleep(self._pause)

    async def deliver(self) -> int:
        """Deliver what is due, at most a batch; give how many entries that were.

        Raises StoreUnavailable; what is claimed by then comes again by itself.
        """
        async with self._busy:
            mails = self._away_until is None or self._away_until <= self._clock()
            entries = await self._store.claim(BATCH, LEASE, mails=mails)
            left = [entry.id for entry in entries]
            async with self._renewed(left):
                for entry in entries:
                    if self._draining or (entry.is_mail and self._away()):
                        continue
                    await self._deliver(entry)
                    left.remove(entry.id)
            if left:
                await self._store.release(left)
        return len(entries)

    async def drain(self) -> None:
        """Finish what is on its way and begin nothing more: the process ends."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(SECONDS_TO_REST), self._busy:
                pass

    async def _deliver(self, entry: Entry) -> None:
        try:
            async with asyncio.timeout(SECONDS_TO_DELIVER):
                carried = await self._route(entry)
        except MailerUnavailable as error:
            await self._wait_for_mailer(error)
            await self._store.release([entry.id])
        except StoreUnavailable:
            raise
        except Exception as error:
            await self._failed(entry, error)
        else:
            if entry.is_mail:
                self._absences, self._away_until = 0, None
            await self._settled(entry.id, carried)

    async def _settled(self, entry_id: int, carried: bool) -> None:
        """Note it however long that takes: what is not noted is delivered twice."""
        while True:
            try:
                if carried:
                    await self._store.delivered(entry_id, self._clock())
                else:
                    await self._store.drop(entry_id)
            except StoreUnavailable as error:
                log.warning("a delivery cannot be noted", cause=repr(error.__cause__))
                await asyncio.sleep(self._pause)
            else:
                return

    async def _failed(self, entry: Entry, error: Exception) -> None:
        cause = type(error).__name__
        told = {"kind": entry.kind, "entry": entry.id, "attempts": entry.attempts}
        if entry.attempts >= MOST_ATTEMPTS:
            log.error("an entry is dead: see academy outbox", cause=cause, **told)
            await self._store.dead_letter(entry.id, self._clock(), cause)
            return
        log.warning("an entry is not delivered", cause=cause, **told)
        delay = pause_after(entry.attempts, LONGEST_PAUSE, self._jitter())
        await self._store.retry(entry.id, delay, cause)

    def _away(self) -> bool:
        return self._away_until is not None and self._away_until > self._clock()

    async def _wait_for_mailer(self, error: MailerUnavailable) -> None:
        self._absences += 1
        delay = pause_after(self._absences, LONGEST_ABSENCE, self._jitter())
        self._away_until = self._clock() + delay
        log.warning("mail cannot be sent", cause=str(error))

    @asynccontextmanager
    async def _renewed(self, ids: Sequence[int]) -> AsyncIterator[None]:
        """Hold on to what is claimed; a process that dies lets go of it soon."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(SECONDS_BETWEEN_RENEWALS)
                with suppress(StoreUnavailable):
                    await self._store.renew(ids, LEASE)

        task = asyncio.create_task(renew())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
