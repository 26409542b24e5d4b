"""Locks of an account that a change of how its user logs in begins with."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.errors import TokenInvalid
from server.store.accounts.user_reads import NOT_DELETED
from server.store.tables import sessions, users


async def is_unchanged(connection: AsyncConnection, user_id: int, version: int) -> bool:
    """Lock an account, and return whether it still has this version."""
    unchanged = [users.c.id == user_id, users.c.version == version, NOT_DELETED]
    query = sa.select(users.c.id).where(*unchanged).with_for_update(read=True)
    return (await connection.execute(query)).first() is not None


async def lock_for_session(
    connection: AsyncConnection, user_id: int, session_id: UUID
) -> None:
    """Lock an account for a change that one of its sessions requests.

    Raises TokenInvalid if the session has ended since the password was verified, for
    example by a password reset.
    """
    account = sa.select(users.c.id).where(users.c.id == user_id)
    await connection.execute(account.with_for_update())
    # a separate statement sees what was committed while this one waited for the lock
    open_session = sa.select(sessions.c.id).where(
        sessions.c.id == session_id, sessions.c.ended_at.is_(None)
    )
    if (await connection.execute(open_session)).first() is None:
        raise TokenInvalid("the session has ended")
