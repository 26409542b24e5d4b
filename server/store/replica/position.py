"""Positions in the write-ahead log: how much a server has written or replayed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from server.store.pool.reader import Reader
from server.store.pool.statement import Statement

_PAGE_BYTES = 8192
_PAGE_HEADERS_BYTES = (24, 40)

# On a primary the end of what was inserted: with synchronous_commit=off a commit is
# answered before it is written.
_POSITION = Statement(
    """
    select
        pg_is_in_recovery() as is_standby,
        (case
            when pg_is_in_recovery() then coalesce(pg_last_wal_replay_lsn(), '0/0')
            else pg_current_wal_insert_lsn()
        end - '0/0'::pg_lsn)::bigint as bytes,
        pg_postmaster_start_time() as started_at,
        clock_timestamp() - pg_last_xact_replay_timestamp() as age,
        (select system_identifier from pg_control_system()) as cluster,
        (
            select oid::bigint from pg_database where datname = current_database()
        ) as database
    """
)


@dataclass(frozen=True, slots=True)
class ServerPosition:
    """How far a server is, and which one it is.

    `bytes` counts from the beginning of the log; `age` is that of the last commit that
    a standby has replayed, by its own clock. Servers that replicate each other have the
    same `cluster` and `database`, and each its own `started_at`.
    """

    is_standby: bool
    bytes: int
    started_at: datetime
    age: timedelta | None
    cluster: int
    database: int


async def position_of(server: Reader) -> ServerPosition:
    """Return how far a server is. Raises StoreUnavailable and the driver's errors."""
    (row,) = await server.run(_POSITION)
    return ServerPosition(**{**row, "bytes": _record_end(row["bytes"])})


def _record_end(position: int) -> int:
    """Return where the last record ends.

    If it fills its page, the position for inserting is behind the header of the next
    page, which a standby does not reach before the next record.
    """
    in_page = position % _PAGE_BYTES
    return position - in_page if in_page in _PAGE_HEADERS_BYTES else position


def mismatch(primary: ServerPosition, replica: ServerPosition) -> str:
    """Return why the second server is no replica of the first one, "" if it is one.

    The primary itself is its own replica. The position of the replica must have been
    asked for before that of the primary.
    """
    if (primary.cluster, primary.database) != (replica.cluster, replica.database):
        return "it holds another database than DATABASE_URL"
    if not replica.is_standby and replica.started_at != primary.started_at:
        return "it was promoted and is a primary of its own"
    if replica.bytes > primary.bytes:
        return "it has changes that the primary does not have"
    return ""
