"""Changes of accounts, read from the outbox in one order that all readers share.

Entries of one account are written under its row's lock, so that their ids are in the
order of its changes. Transaction ids are not: a transaction may get its id before it
waits for the lock. An outbox id may also become visible late, when the transaction
that took it commits late. So an entry is returned once it is settled: each poll notes
the greatest id and the first transaction that had not begun; when all transactions
before that one have ended, no further entry can appear at or below that id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from server.domain.accounts.user_watch import Change
from server.domain.event_buffer import EventBuffer
from server.domain.outbox.entries import EventType
from server.store.accounts.user_reads import UserReads
from server.store.backups.restored_at import LAST_RESTORED_AT
from server.store.connections.connect import Database
from server.store.connections.signals import Signals
from server.store.tables import outbox

# A change is visible elsewhere within 500 ms: the rest is for the poll itself.
POLL_INTERVAL = timedelta(milliseconds=400)
MIN_INTERVAL = timedelta(milliseconds=10)  # many commits cost one poll
MAX_BUFFERED = 1_000
KINDS = (
    EventType.USER_CREATED,
    EventType.USER_UPDATED,
    EventType.USER_DELETED,
    EventType.USER_UNDELETED,
    EventType.USER_ERASED,
)
_NEWEST = sa.text(
    "select coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')), 0)"
)


class UserChangeFeed:
    """Reads changes for all streams of this process, and buffers the last ones."""

    def __init__(self, database: Database, users: UserReads) -> None:
        self._database = database
        self._users = users
        # (greatest outbox id, first transaction not begun) of polls not yet settled
        self._unsettled: deque[tuple[int, int]] = deque()
        self._unsettled_polls = 0  # in a row
        self._recent: deque[Change] = deque(maxlen=MAX_BUFFERED)
        self._recent_after = 0  # every settled change after this id is in _recent
        # the last entry for which _recent was searched, and the result
        self._searched: tuple[int, Sequence[Change]] | None = None
        self.settled: int | None = None
        self.buffer: EventBuffer[int] = EventBuffer(1)

    def interval(self) -> timedelta:
        """Return the time until the next poll.

        While a transaction is open it is short, and doubles at each poll.
        """
        if not self._unsettled:
            return POLL_INTERVAL
        doubled: timedelta = MIN_INTERVAL * 2 ** min(self._unsettled_polls, 10)
        return min(doubled, POLL_INTERVAL)

    async def refresh(self) -> None:
        """Read what has settled since the last poll. Raises StoreUnavailable."""
        settling = self._database.settled_changes
        # one statement, so that all three values are of one snapshot
        snapshot = sa.text(
            "select (select coalesce(max(id), 0) from outbox) as newest_id,"  # noqa: S608 - no values
            f" {settling.oldest_open} as oldest_open,"
            f" {settling.not_begun} as not_begun"
        )
        if settling.advance:
            await self._database.run(settling.advance)
        async with self._database.reading() as connection:
            row = (await connection.execute(snapshot)).one()
        await self.follow(row)

    async def follow(self, snapshot: Signals | sa.Row[Any]) -> None:
        """Do the same with a snapshot of all three values. Raises StoreUnavailable."""
        noted = self._unsettled[-1][0] if self._unsettled else self.settled
        if noted is None or snapshot.newest_id > noted:
            self._unsettled.append((snapshot.newest_id, snapshot.not_begun))
        settled = self.settled
        while self._unsettled and self._unsettled[0][1] <= snapshot.oldest_open:
            settled = max(self._unsettled.popleft()[0], settled or 0)
        self._unsettled_polls = self._unsettled_polls + 1 if self._unsettled else 0
        if settled == self.settled:
            self.buffer.extend([])
            return
        if self.settled is None:
            self._recent_after = settled or 0
        else:
            await self._read_recent(self.settled, settled or 0)
        self.settled = settled
        self.buffer.extend([self.settled or 0])

    async def newest(self) -> int:
        """Return the greatest outbox id that was ever used. Raises StoreUnavailable."""
        async with self._database.reading() as connection:
            newest: int = (await connection.execute(_NEWEST)).scalar_one()
        return newest

    async def restored_at(self) -> datetime | None:
        """Return when the database was restored last. Raises StoreUnavailable."""
        async with self._database.reading() as connection:
            at: datetime | None = (
                await connection.execute(LAST_RESTORED_AT)
            ).scalar_one()
        return at

    async def chunk(self, after: int, size: int) -> Sequence[Change]:
        """Return the next settled changes after an entry, in their order."""
        if after >= self._recent_after:
            return self._recent_after_entry(after)[:size]
        return await self._read(after, self.settled or 0, size)

    def _recent_after_entry(self, after: int) -> Sequence[Change]:
        """Return the buffered changes after an entry.

        Nearly all streams are at the same entry: one of them searches the buffer.
        """
        if self._searched is None or self._searched[0] != after:
            changes = [change for change in self._recent if change.id > after]
            self._searched = after, changes
        return self._searched[1]

    async def _read_recent(self, after: int, until: int) -> None:
        changes = await self._read(after, until, MAX_BUFFERED)
        self._searched = None
        if len(changes) == MAX_BUFFERED:  # too many: each stream reads them itself
            self._recent.clear()
            self._recent_after = until
            return
        for change in changes:
            if len(self._recent) == MAX_BUFFERED:
                self._recent_after = self._recent[0].id
            self._recent.append(change)

    async def _read(self, after: int, until: int, size: int) -> Sequence[Change]:
        query = (
            sa.select(outbox.c.id, outbox.c.kind, outbox.c.user_id)
            .where(outbox.c.id > after, outbox.c.id <= until, outbox.c.kind.in_(KINDS))
            .order_by(outbox.c.id)
            .limit(size)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        # read after the entries, so that no account is older than its entry
        users = await self._users.by_ids([row.user_id for row in rows]) if rows else {}
        return [
            Change(row.id, EventType(row.kind), row.user_id, users.get(row.user_id))
            for row in rows
        ]
