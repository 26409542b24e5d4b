"""Changes of accounts, out of the outbox, in one order for everybody.

Entries of one account are written under its row's lock, so that their ids are in the
order of its changes; transaction ids are not, because a transaction may get its own
before it waits for the lock. An id may turn up late, though, when the transaction that
took it commits late. So an entry is told once it is settled: the greatest id seen is
noted with the first transaction that had not begun then; when all older ones have
ended, nothing can turn up at or below that id.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import sqlalchemy as sa
import structlog

from server.domain.accounts.user_watch import Change
from server.domain.errors import StoreUnavailable
from server.domain.event_buffer import EventBuffer
from server.domain.outbox.entries import EventType
from server.store.accounts.user_reads import UserReads
from server.store.connect import Database
from server.store.tables import outbox

log = structlog.get_logger()
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_AT_LEAST = 0.01
MOST_AHEAD = 1_000
KINDS = (
    EventType.USER_CREATED,
    EventType.USER_UPDATED,
    EventType.USER_DELETED,
    EventType.USER_UNDELETED,
    EventType.USER_ERASED,
)
# one statement, so that all three are of one snapshot
_SEEN = sa.text(
    "select (select coalesce(max(id), 0) from outbox) as newest_id,"
    " pg_snapshot_xmin(s)::text::bigint as oldest_open,"
    " pg_snapshot_xmax(s)::text::bigint as not_begun"
    " from (select pg_current_snapshot() as s) now"
)
_NEWEST = sa.text(
    "select coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')), 0)"
)


class UserChangeFeed:
    """Reads changes for all who watch in this process; the last ones stay at hand."""

    def __init__(self, database: Database, users: UserReads) -> None:
        self._database = database
        self._users = users
        self._marks: deque[tuple[int, int]] = deque()
        self._held: deque[Change] = deque(maxlen=MOST_AHEAD)
        self._unsettled = 0  # looks in a row that found a transaction open
        self._held_after = 0  # every settled change after this entry is held
        self.told = asyncio.Event()
        self.settled: int | None = None
        self.buffer: EventBuffer[int] = EventBuffer(1)

    async def refresh(self) -> None:
        """Read what has been settled since the last look. Raises StoreUnavailable."""
        async with self._database.reading() as connection:
            row = (await connection.execute(_SEEN)).one()
        seen, oldest_open, not_begun = row.newest_id, row.oldest_open, row.not_begun
        if not self._marks or seen > self._marks[-1][0]:
            self._marks.append((seen, not_begun))
        settled = self.settled
        while self._marks and self._marks[0][1] <= oldest_open:
            settled = max(self._marks.popleft()[0], settled or 0)
        if settled == self.settled:
            self.buffer.extend([])
            return
        if self.settled is None:
            self._held_after = settled or 0
        else:
            await self._hold(self.settled, settled or 0)
        self.settled = settled
        self.buffer.extend([self.settled or 0])

    async def _hold(self, after: int, until: int) -> None:
        found = await self._read(after, until, MOST_AHEAD)
        if len(found) == MOST_AHEAD:  # too many at once: who watches reads them alone
            self._held.clear()
            self._held_after = until
            return
        for change in found:
            if len(self._held) == MOST_AHEAD:
                self._held_after = self._held[0].id
            self._held.append(change)

    async def run(self) -> None:
        """Look twice a second, and when Postgres tells, until cancelled."""
        while True:
            try:
                await self.refresh()
            except StoreUnavailable as error:
                log.warning("changes cannot be read", cause=repr(error.__cause__))
            await asyncio.sleep(SECONDS_AT_LEAST)  # many commits are one look
            await self._next_look()

    async def _next_look(self) -> None:
        """Wait less for a transaction to end, and ever longer for one that stays."""
        self._unsettled = self._unsettled + 1 if self._marks else 0
        soon = SECONDS_AT_LEAST * 2 ** min(self._unsettled, 10)
        wait = (
            min(soon, SECONDS_BETWEEN_LOOKS) if self._marks else SECONDS_BETWEEN_LOOKS
        )
        try:
            async with asyncio.timeout(wait):
                await self.told.wait()
        except TimeoutError:
            return
        self.told.clear()

    async def newest(self) -> int:
        """Give the last entry's id that was ever given. Raises StoreUnavailable."""
        async with self._database.reading() as connection:
            newest: int = (await connection.execute(_NEWEST)).scalar_one()
        return newest

    async def chunk(self, after: int, size: int) -> Sequence[Change]:
        """Give the next settled changes after an entry, in their order."""
        if after >= self._held_after:
            return [change for change in self._held if change.id > after][:size]
        return await self._read(after, self.settled or 0, size)

    async def _read(self, after: int, until: int, size: int) -> Sequence[Change]:
        query = (
            sa.select(outbox.c.id, outbox.c.kind, outbox.c.user_id)
            .where(outbox.c.id > after, outbox.c.id <= until, outbox.c.kind.in_(KINDS))
            .order_by(outbox.c.id)
            .limit(size)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        # read after the entries, so that none is older than what its entry tells
        users = await self._users.by_ids([row.user_id for row in rows]) if rows else {}
        return [
            Change(row.id, EventType(row.kind), row.user_id, users.get(row.user_id))
            for row in rows
        ]
