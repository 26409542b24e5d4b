"""What is written with a change: outbox entries, and the audit event of the call.

One statement writes them all. Rows are sent as JSON, so that their number does not
change the statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

import orjson
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.audit import AuditEvent, pending_event
from server.domain.outbox.entries import NewEntry
from server.store.connections.connect import WRITES_ENTRIES
from server.store.pool.statement import Statement

_AUDIT_COLUMNS = "at, event, actor, user_id, address, outcome, request_id"
AUDIT_ROWS = (
    "jsonb_to_recordset(:audit) as event(at timestamptz, event text, actor text, "
    "user_id bigint, address text, outcome text, request_id text)"
)
INSERT_AUDIT = f"insert into audit_events ({_AUDIT_COLUMNS})"
WRITE_AUDIT = Statement(
    f"{INSERT_AUDIT} select {_AUDIT_COLUMNS} from {AUDIT_ROWS}"  # noqa: S608 - no values
)
WRITE_ENTRIES = Statement(
    f"""
    with audited as ({INSERT_AUDIT} select {_AUDIT_COLUMNS} from {AUDIT_ROWS})
    insert into outbox (kind, user_id, address, payload, created_at)
    select kind, user_id, address, payload, :now
    from rows from (
        jsonb_to_recordset(:entries)
        as (kind text, user_id bigint, address varchar(255), payload jsonb)
    ) with ordinality as entry(kind, user_id, address, payload, position)
    order by position
    """  # noqa: S608 - no values
)


def audited(changed: str, *, identifies: bool = False) -> str:
    """Return SQL that writes the event in `:audit` if `changed` has a row.

    `changed` is a part of the same statement, whose user_id is the affected user. With
    `identifies`, this user is the actor of a call without a token.
    """
    actor = "event.actor"
    if identifies:
        actor = "coalesce(nullif(actor, 'anonymous'), 'user:' || changed.user_id)"
    return f"""audited as (
        {INSERT_AUDIT}
        select at, event, {actor}, changed.user_id, address, outcome, request_id
        from {changed} as changed, {AUDIT_ROWS}
    )"""  # noqa: S608 - no values


def audit_rows(user_id: int = 0) -> str:
    """Return the event of the present call as JSON rows, none if it is not audited.

    Call `mark_audited` once the change was written with it.
    """
    pending = pending_event.get()
    if pending is None or pending.is_written:
        return "[]"
    return render_events([pending.build(user_id)])


def mark_audited() -> None:
    """Note that the event of the present call was written."""
    if pending := pending_event.get():
        pending.is_written = True


def render_events(events: Sequence[AuditEvent]) -> str:
    """Return events as JSON rows; the store assigns their ids."""
    return orjson.dumps(events).decode()


def render_entries(entries: Sequence[NewEntry]) -> str:
    """Return entries as JSON rows."""
    return orjson.dumps([asdict(entry) for entry in entries]).decode()


def announce_after_commit(connection: AsyncConnection) -> None:
    """Note that the transaction writes outbox entries: see `Database.announce`."""
    connection.info[WRITES_ENTRIES] = True


async def audit_change(connection: AsyncConnection, user_id: int = 0) -> None:
    """Write the call's audit event in the caller's transaction, if it has one.

    `user_id` is the affected user, if the call itself does not name one.
    """
    audit = audit_rows(user_id)
    if audit != "[]":
        await connection.execute(WRITE_AUDIT.clause, {"audit": audit})
        mark_audited()


async def record(
    connection: AsyncConnection, now: datetime, *entries: NewEntry, user_id: int = 0
) -> None:
    """Write outbox entries with the call's audit event. See `audit_change`."""
    if not entries:
        await audit_change(connection, user_id)
        return
    values = {
        "now": now,
        "entries": render_entries(entries),
        "audit": audit_rows(user_id),
    }
    await connection.execute(WRITE_ENTRIES.clause, values)
    announce_after_commit(connection)
    mark_audited()
