"""When this database was restored last: an audit event says so.

Tokens that resume streams may be older than that. Then they count changes, or
transactions, that this database has lost.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.store.tables import audit_events

RESTORED = "database.restored"
IS_RESTORATION = audit_events.c.event == RESTORED
LAST_RESTORED_AT = sa.select(sa.func.max(audit_events.c.at)).where(IS_RESTORATION)


async def record_restoration(connection: AsyncConnection, now: datetime) -> None:
    """Write the audit event, in the caller's transaction."""
    event = {
        "at": now,
        "event": RESTORED,
        "actor": "operator",
        "user_id": 0,
        "address": "",
        "outcome": "OK",
        "request_id": "",
    }
    await connection.execute(sa.insert(audit_events).values(event))
