"""Settled changes: how readers know that no earlier change can still be committed.

Rows get their ids before they are committed, so that a lower id may appear after a
higher one. A reader skips none if it knows which transactions are open. There are two
ways: the transaction ids of Postgres, and epochs, for engines that speak its protocol
without them. Both number the transactions that write; a number is shared by all
transactions of an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.errors import StoreUnavailable
from server.store.pool.statement import Statement

MAX_BEGIN_ATTEMPTS = 10

# of a transaction; the default of `revocations.written_by` reads it
EPOCH_SETTING = "academy.write_epoch"


@dataclass(frozen=True, slots=True)
class SettledChanges:
    """SQL for the numbers of transactions that write.

    All transactions below `oldest_open` have ended, and none that begins later is below
    `not_begun`; both are values of the statement's snapshot. A transaction executes
    `begin` before it writes; it is repeated while it returns no row. Readers execute
    `advance` before each poll.
    """

    oldest_open: str
    not_begun: str
    begin: Statement | None = None
    advance: Statement | None = None

    def must_begin(self, statement: Statement) -> bool:
        """Return whether a statement needs a transaction that has begun to write."""
        is_write = not statement.is_read and statement is not self.advance
        return self.begin is not None and is_write

    async def begin_writing(self, connection: AsyncConnection) -> None:
        """Execute `begin` in a transaction. Raises StoreUnavailable."""
        if self.begin is None:
            return
        for _ in range(MAX_BEGIN_ATTEMPTS):
            if (await connection.execute(self.begin.clause)).first():
                return
        raise StoreUnavailable from RuntimeError("no write epoch can be locked")


TRANSACTION_IDS = SettledChanges(
    oldest_open="pg_snapshot_xmin(pg_current_snapshot())::text::bigint",
    not_begun="pg_snapshot_xmax(pg_current_snapshot())::text::bigint",
)
# A transaction locks the row of the newest epoch until it ends, whether it commits, is
# rolled back or loses its connection. A reader deletes older epochs whose rows nobody
# has locked: no transaction can begin in them any more. No clock is involved.
WRITE_EPOCHS = SettledChanges(
    oldest_open="(select min(id) from write_epochs)",
    not_begun="(select max(id) + 1 from write_epochs)",
    # no row: the epoch was deleted between the snapshot and the lock
    begin=Statement(
        f"""
        select set_config('{EPOCH_SETTING}', id::text, true)
        from (
            select id from write_epochs order by id desc limit 1 for key share
        ) as newest
        """  # noqa: S608 - no values
    ),
    advance=Statement(
        """
        with newest as (
            select max(id) as id from write_epochs
        ), ended as (
            select write_epochs.id from write_epochs, newest
            where write_epochs.id < newest.id
            for update of write_epochs skip locked
        ), closed as (
            delete from write_epochs using ended where write_epochs.id = ended.id
            returning ended.id
        )
        insert into write_epochs (id) select newest.id + 1 from newest
        where (select count(*) from closed) = (
            select count(*) from write_epochs, newest where write_epochs.id < newest.id
        )
        on conflict do nothing
        """
    ),
)
