"""Changes of how an account is logged in to, in a transaction that has locked it."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.errors import LastWayIn
from server.domain.factors.methods import FactorType
from server.domain.outbox.entries import EventType, NewEntry
from server.store.tables import factors, identities, users


async def bump_version(
    connection: AsyncConnection, user_id: int, now: datetime
) -> NewEntry:
    """Change the version of an account; return the event to write with it.

    What was begun with the previous version, such as a log-in that waits for a second
    factor, is void.
    """
    change = (
        sa.update(users)
        .where(users.c.id == user_id)
        .values(version=users.c.version + 1, updated_at=now)
        .returning(users.c.version)
    )
    version = (await connection.execute(change)).scalar_one()
    return NewEntry(EventType.USER_UPDATED, user_id, payload={"version": version})


async def check_way_in(connection: AsyncConnection, user_id: int) -> None:
    """Raise LastWayIn if nothing is left that opens a session on its own.

    That is a password, a passkey or an identity at another provider. A mailed code or a
    reset of the password does not count: an address can be lost, too.
    """
    passkeys = sa.exists().where(
        factors.c.user_id == user_id,
        factors.c.type == FactorType.PASSKEY,
        factors.c.confirmed_at.is_not(None),
    )
    linked = sa.exists().where(identities.c.user_id == user_id)
    query = sa.select(sa.or_(users.c.hashed_password != "", passkeys, linked)).where(
        users.c.id == user_id
    )
    if not (await connection.execute(query)).scalar():
        raise LastWayIn
