"""Erasing a user: what was personal is gone, the id stays used (GDPR art. 17)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.outbox.entries import MAIL, EventType, NewEntry
from server.store.credentials.revocations import end_sessions
from server.store.members.analytics import mark_followed_by
from server.store.outbox import enqueue
from server.store.tables import audit_events, outbox, request_answers, users

# The account is blanked before it goes: the trigger on changes tells every process
# to drop what it holds, and a mark replaces what Redis holds.
_BLANK = {
    "email": sa.func.concat("erased:", users.c.id),
    "username": "",
    "username_folded": sa.func.concat("erased:", users.c.id),
    "hashed_password": "",
    "version": users.c.version + 1,
}


async def erase(
    connection: AsyncConnection, user_id: int, now: datetime
) -> Sequence[UUID]:
    """Erase a user in the caller's transaction; gives the sessions that it ended.

    Tables that belong to a user go with the row. The audit log keeps the id only,
    and an event tells the streams. Erasing nobody changes nothing.
    """
    names = sa.select(users.c.email, users.c.username_folded)
    found = names.where(users.c.id == user_id).with_for_update()
    row = (await connection.execute(found)).first()
    if row is None:
        return []
    ended = await end_sessions(connection, user_id, now)
    await _forget_mails(connection, user_id, [row.email, row.username_folded])
    await _forget_traces(connection, user_id)
    mine = users.c.id == user_id
    await mark_followed_by(connection, user_id)
    await connection.execute(sa.update(users).where(mine).values(_BLANK))
    await connection.execute(sa.delete(users).where(mine))
    await enqueue(connection, now, NewEntry(EventType.USER_ERASED, user_id))
    return ended


async def _forget_mails(
    connection: AsyncConnection, user_id: int, names: Sequence[str]
) -> None:
    """Send them nothing more; events of theirs hold no more than the id."""
    own = sa.and_(
        outbox.c.user_id == user_id, outbox.c.kind.startswith(MAIL, autoescape=True)
    )
    await connection.execute(
        sa.delete(outbox).where(sa.or_(own, outbox.c.address.in_(names)))
    )


async def _forget_traces(connection: AsyncConnection, user_id: int) -> None:
    """Forget the answers that show them, and the addresses they came from."""
    shown = sa.or_(
        request_answers.c.caller == f"user:{user_id}",
        request_answers.c.about.contains([user_id]),
    )
    await connection.execute(sa.delete(request_answers).where(shown))
    theirs = sa.or_(
        audit_events.c.user_id == user_id, audit_events.c.actor == f"user:{user_id}"
    )
    await connection.execute(
        sa.update(audit_events)
        .where(theirs, audit_events.c.address != "")
        .values(address="")
    )
