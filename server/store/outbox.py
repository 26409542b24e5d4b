"""The outbox in Postgres: written in the transaction of the change it follows.

An entry is claimed by moving its next attempt to the end of a lease: nobody else
sees it until then. By the clock of Postgres, which all processes share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.errors import StoreUnavailable
from server.domain.outbox.entries import (
    MAIL,
    DeadEntry,
    Entry,
    EventType,
    NewEntry,
    State,
)
from server.store.connect import Database
from server.store.mapping import columns_of, entity_of
from server.store.tables import mailed_tokens, outbox

log = structlog.get_logger()
CHANNEL = "outbox"
SECONDS_BETWEEN_TRIES = 1.0
_IS_MAIL = outbox.c.kind.startswith(MAIL, autoescape=True)
_ENTRY = columns_of(Entry, outbox)


async def enqueue(
    connection: AsyncConnection, now: datetime, *entries: NewEntry
) -> None:
    """Write entries in the caller's transaction: they are told if it commits."""
    rows = [asdict(entry) | {"created_at": now} for entry in entries]
    if rows:
        await connection.execute(sa.insert(outbox), rows)


async def take_back(connection: AsyncConnection, user_id: int, now: datetime) -> None:
    """Let no token that was mailed to a user serve, nor the mail of a new address go.

    In the caller's transaction, which has locked the account.
    """
    await connection.execute(
        sa.update(mailed_tokens)
        .where(mailed_tokens.c.user_id == user_id, mailed_tokens.c.used_at.is_(None))
        .values(used_at=now)
    )
    await connection.execute(
        sa.delete(outbox).where(
            outbox.c.user_id == user_id,
            outbox.c.kind == EventType.EMAIL_CHANGE,
            outbox.c.state != State.DELIVERED,
        )
    )


class PostgresOutbox:
    """Keeps entries until they are delivered, and a while longer for the streams."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._told = asyncio.Event()
        self._also: list[asyncio.Event] = []

    async def add(self, now: datetime, *entries: NewEntry) -> None:
        """Write entries that follow no other change."""
        async with self._database.transaction() as connection:
            await enqueue(connection, now, *entries)

    async def claim(
        self, size: int, lease: timedelta, *, mails: bool
    ) -> Sequence[Entry]:
        """Give entries that are due and nobody else's for as long as the lease."""
        self._told.clear()
        found = [
            outbox.c.state == State.PENDING,
            outbox.c.next_attempt_at <= sa.func.now(),
        ]
        if not mails:
            found.append(sa.not_(_IS_MAIL))
        due = (
            sa.select(outbox.c.id)
            .where(*found)
            .order_by(outbox.c.next_attempt_at, outbox.c.id)
            .limit(size)
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        statement = (
            sa.update(outbox)
            .where(outbox.c.id == due.c.id)
            .values(
                attempts=outbox.c.attempts + 1, next_attempt_at=sa.func.now() + lease
            )
            .returning(*_ENTRY)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(statement)).all()
        return sorted(
            (entity_of(Entry, row) for row in rows), key=lambda entry: entry.id
        )

    async def renew(self, ids: Sequence[int], lease: timedelta) -> None:
        """Begin the lease of claimed entries anew."""
        await self._change(ids, next_attempt_at=sa.func.now() + lease)

    async def release(self, ids: Sequence[int]) -> None:
        """Give claimed entries up, as if they had never been tried."""
        await self._change(
            ids, next_attempt_at=sa.func.now(), attempts=outbox.c.attempts - 1
        )

    async def delivered(self, entry_id: int, now: datetime) -> None:
        """Note that an entry is delivered; who got a mail is forgotten."""
        done = {"state": State.DELIVERED, "delivered_at": now, "last_error": None}
        address = sa.case((_IS_MAIL, sa.null()), else_=outbox.c.address)
        payload = sa.case(
            (_IS_MAIL, sa.literal({}, outbox.c.payload.type)), else_=outbox.c.payload
        )
        await self._change([entry_id], **done, address=address, payload=payload)

    async def drop(self, entry_id: int) -> None:
        """Forget an entry that came to nothing."""
        statement = sa.delete(outbox).where(outbox.c.id == entry_id)
        async with self._database.reading() as connection:
            await connection.execute(statement)

    async def retry(self, entry_id: int, delay: timedelta, cause: str) -> None:
        """Let an entry come again."""
        again = sa.func.now() + delay
        await self._change([entry_id], next_attempt_at=again, last_error=cause)

    async def dead_letter(self, entry_id: int, now: datetime, cause: str) -> None:
        """Let an entry wait for an operator."""
        dead = {"state": State.DEAD, "delivered_at": now, "last_error": cause}
        await self._change([entry_id], **dead)

    async def _change(self, ids: Sequence[int], **values: Any) -> None:
        statement = sa.update(outbox).where(
            outbox.c.id.in_(ids), outbox.c.state == State.PENDING
        )
        async with self._database.reading() as connection:
            await connection.execute(statement.values(values))

    async def dead(self) -> Sequence[DeadEntry]:
        """Give the entries that wait for an operator, the oldest first."""
        columns = columns_of(DeadEntry, outbox)
        query = sa.select(*columns).where(outbox.c.state == State.DEAD)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.order_by(outbox.c.id))
            return [entity_of(DeadEntry, row) for row in rows]

    async def revive(self, ids: Sequence[int]) -> int:
        """Let dead entries be delivered anew; give how many that were."""
        statement = (
            sa.update(outbox)
            .where(outbox.c.id.in_(ids), outbox.c.state == State.DEAD)
            .values(
                state=State.PENDING,
                attempts=0,
                next_attempt_at=sa.func.now(),
                delivered_at=None,
            )
            .returning(outbox.c.id)
        )
        async with self._database.reading() as connection:
            return len((await connection.execute(statement)).all())

    async def delivered_since(
        self, kind: EventType, user_id: int, since: datetime
    ) -> bool:
        """Tell whether a user got an entry of this kind that was written since."""
        query = sa.select(outbox.c.id).where(
            outbox.c.user_id == user_id,
            outbox.c.kind == kind,
            outbox.c.state == State.DELIVERED,
            outbox.c.created_at >= since,
        )
        async with self._database.reading() as connection:
            return (await connection.execute(query.limit(1))).first() is not None

    async def wait(self, seconds: float) -> None:
        """Wait for new entries, at most this long."""
        try:
            async with asyncio.timeout(seconds):
                await self._told.wait()
        except TimeoutError:
            return

    def tell(self, event: asyncio.Event) -> None:
        """Set an event, too, whenever Postgres tells of new entries."""
        self._also.append(event)

    async def listen(self) -> None:
        """Take what Postgres tells of new entries, until cancelled."""
        while True:
            try:
                await self._database.listen(CHANNEL, self._hear)
            except (StoreUnavailable, sa.exc.SQLAlchemyError) as error:
                log.debug("new entries are not told", cause=type(error).__name__)
            await asyncio.sleep(SECONDS_BETWEEN_TRIES)

    def _hear(self, *_: object) -> None:
        for event in (self._told, *self._also):
            event.set()
