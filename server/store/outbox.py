"""The outbox in Postgres: entries are written in the transaction of their change.

An entry is claimed by moving its next attempt to the end of a lease: other processes
skip it until then. Times are those of Postgres' clock, which all processes share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.outbox.entries import (
    MAIL,
    DeadLetter,
    Entry,
    EntryState,
    EventType,
    NewEntry,
    Queue,
)
from server.store.change_records import (
    WRITE_ENTRIES,
    audit_rows,
    mark_audited,
    render_entries,
)
from server.store.connections.connect import Database
from server.store.tables import mailed_tokens, outbox, outbox_queue

_IS_MAIL = outbox.c.kind.startswith(MAIL, autoescape=True)
_ENTRY_COLUMNS = (
    outbox.c.id,
    outbox.c.kind,
    outbox.c.user_id,
    outbox.c.address,
    outbox.c.payload,
    outbox.c.created_at,
    outbox.c.attempts,
)

# Each part reads a partial index. The conditions are literals, because the planner
# uses a partial index only if it can prove its condition.
_PENDING = outbox.c.state == sa.literal_column(str(EntryState.PENDING.value))
_DEAD = outbox.c.state == sa.literal_column(str(EntryState.DEAD.value))
_AGE = sa.func.extract("epoch", sa.func.now() - sa.func.min(outbox.c.created_at))
BACKLOG = sa.select(
    sa.select(sa.func.count()).where(_PENDING).scalar_subquery(),
    sa.select(sa.func.count()).where(_DEAD).scalar_subquery(),
    sa.select(sa.func.coalesce(_AGE, sa.literal_column("0")))
    .where(_PENDING)
    .scalar_subquery(),
)


def _due(queue: Queue, size: int) -> sa.CTE:
    """Return the ids of entries of a queue that are due, locked; reads an index."""
    return (
        sa.select(outbox.c.id)
        .where(
            _PENDING,
            outbox_queue == sa.literal_column(str(queue.value)),
            outbox.c.next_attempt_at <= sa.func.now(),
        )
        .order_by(outbox.c.next_attempt_at, outbox.c.id)
        .limit(size)
        .with_for_update(skip_locked=True)
        .cte(f"due_{queue.name.lower()}")
    )


@dataclass(frozen=True, slots=True)
class Backlog:
    """Entries that are not delivered; the age of the oldest pending one in seconds."""

    pending: int
    dead: int
    age: float


async def invalidate_mailed_tokens(
    connection: AsyncConnection, user_id: int, now: datetime
) -> None:
    """Invalidate the tokens mailed to a user, and pending e-mails to a new address.

    Runs in the caller's transaction, which has locked the account.
    """
    await connection.execute(
        sa.update(mailed_tokens)
        .where(mailed_tokens.c.user_id == user_id, mailed_tokens.c.used_at.is_(None))
        # A token that was used has `used_at` before `expires_at`.
        .values(used_at=now, expires_at=sa.func.least(mailed_tokens.c.expires_at, now))
    )
    await connection.execute(
        sa.delete(outbox).where(
            outbox.c.user_id == user_id,
            outbox.c.kind == EventType.EMAIL_CHANGE,
            outbox.c.state != EntryState.DELIVERED,
        )
    )


class PostgresOutbox:
    """Stores entries until they are delivered, and some days longer for the streams."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.backlog: Backlog | None = None

    async def add(
        self, now: datetime, *entries: NewEntry, audited: bool = False
    ) -> None:
        """Write entries, and the call's audit event if it is `audited`."""
        audit = audit_rows() if audited else "[]"
        await self._database.run(
            WRITE_ENTRIES, now=now, entries=render_entries(entries), audit=audit
        )
        self._database.announce()
        if audited:
            mark_audited()

    async def claim(
        self, sizes: Mapping[Queue, int], lease: timedelta
    ) -> Sequence[Entry]:
        """Claim entries that are due, up to a number from each queue.

        No other process gets them during the lease.
        """
        due = [_due(queue, size) for queue, size in sizes.items()]
        claimed = sa.union_all(*(sa.select(part.c.id) for part in due))
        statement = (
            sa.update(outbox)
            .where(outbox.c.id.in_(claimed))
            .values(
                attempts=outbox.c.attempts + 1, next_attempt_at=sa.func.now() + lease
            )
            .returning(*_ENTRY_COLUMNS)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(statement)).all()
        entries = (Entry(**row._mapping) for row in rows)
        return sorted(entries, key=lambda entry: entry.id)

    async def renew(self, ids: Sequence[int], lease: timedelta) -> None:
        """Extend the lease of claimed entries."""
        await self._update_pending(ids, next_attempt_at=sa.func.now() + lease)

    async def release(self, ids: Sequence[int]) -> None:
        """Release claimed entries, without counting the attempt."""
        await self._update_pending(
            ids, next_attempt_at=sa.func.now(), attempts=outbox.c.attempts - 1
        )

    async def postpone(self, ids: Sequence[int], delay: timedelta) -> None:
        """Release claimed entries, which become due again after the delay."""
        await self._update_pending(
            ids,
            next_attempt_at=sa.func.now() + delay,
            attempts=outbox.c.attempts - 1,
        )

    async def delivered(self, ids: Sequence[int], now: datetime) -> None:
        """Mark entries as delivered; the recipients of e-mails are deleted."""
        values = {
            "state": EntryState.DELIVERED,
            "delivered_at": now,
            "last_error": None,
        }
        address = sa.case((_IS_MAIL, sa.null()), else_=outbox.c.address)
        payload = sa.case(
            (_IS_MAIL, sa.literal({}, outbox.c.payload.type)), else_=outbox.c.payload
        )
        await self._update_pending(ids, **values, address=address, payload=payload)

    async def drop(self, ids: Sequence[int]) -> None:
        """Delete entries for which there was nothing to deliver."""
        statement = sa.delete(outbox).where(outbox.c.id.in_(ids))
        async with self._database.reading() as connection:
            await connection.execute(statement)

    async def retry(self, entry_id: int, delay: timedelta, cause: str) -> None:
        """Make an entry due again after the delay."""
        next_attempt = sa.func.now() + delay
        await self._update_pending(
            [entry_id], next_attempt_at=next_attempt, last_error=cause
        )

    async def dead_letter(self, entry_id: int, now: datetime, cause: str) -> None:
        """Keep an entry for an operator; it is not retried by itself."""
        values = {"state": EntryState.DEAD, "delivered_at": now, "last_error": cause}
        await self._update_pending([entry_id], **values)

    async def _update_pending(self, ids: Sequence[int], **values: Any) -> None:
        statement = sa.update(outbox).where(
            outbox.c.id.in_(ids), outbox.c.state == EntryState.PENDING
        )
        async with self._database.reading() as connection:
            await connection.execute(statement.values(values))

    async def dead_letters(self) -> Sequence[DeadLetter]:
        """Return the dead letters, the oldest first."""
        columns = [outbox.c[field.name] for field in fields(DeadLetter)]
        query = sa.select(*columns).where(outbox.c.state == EntryState.DEAD)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.order_by(outbox.c.id))
            return [DeadLetter(**row._mapping) for row in rows]

    async def requeue(self, ids: Sequence[int]) -> set[int]:
        """Queue dead letters for delivery again; return the ids of those entries."""
        statement = (
            sa.update(outbox)
            .where(outbox.c.id.in_(ids), outbox.c.state == EntryState.DEAD)
            .values(
                state=EntryState.PENDING,
                attempts=0,
                next_attempt_at=sa.func.now(),
                delivered_at=None,
            )
            .returning(outbox.c.id)
        )
        async with self._database.reading() as connection:
            return set((await connection.execute(statement)).scalars())

    async def delivered_since(
        self, kind: EventType, user_id: int, since: datetime
    ) -> bool:
        """Return whether a user got an entry of this kind that was written since."""
        query = sa.select(outbox.c.id).where(
            outbox.c.user_id == user_id,
            outbox.c.kind == kind,
            outbox.c.state == EntryState.DELIVERED,
            outbox.c.created_at >= since,
        )
        async with self._database.reading() as connection:
            return (await connection.execute(query.limit(1))).first() is not None

    async def refresh_backlog(self) -> None:
        """Read the backlog for the metrics; a failed read keeps the previous one."""
        async with self._database.reading() as connection:
            row = (await connection.execute(BACKLOG)).one()
        self.backlog = Backlog(*row)
