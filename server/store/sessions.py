"""Sessions in Postgres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.auth import Decide
from server.domain.credentials.sessions import Rotation, Session
from server.store.connect import Database
from server.store.revocations import RevocationFeed, revoke
from server.store.tables import sessions


class PostgresSessions:
    """Keeps sessions; whatever ends one also writes its revocation."""

    def __init__(self, database: Database, feed: RevocationFeed) -> None:
        self._database = database
        self._feed = feed

    async def add(self, session: Session) -> None:
        """Write a new session."""
        async with self._database.transaction() as connection:
            await connection.execute(sa.insert(sessions).values(asdict(session)))

    async def rotate(self, session_id: UUID, decide: Decide) -> Rotation | None:
        """Lock the session, let `decide` say what becomes of it, and write that.

        Gives None if there is no such session. What `decide` raises changes nothing.
        """
        query = sa.select(sessions).where(sessions.c.id == session_id)
        async with self._database.transaction() as connection:
            row = (await connection.execute(query.with_for_update())).first()
            if row is None:
                return None
            before = Session(**row._mapping)
            rotation = decide(before)
            if rotation.session != before:
                await _write(connection, rotation.session)
        if rotation.session.ended_at:
            await self._feed.announce(session_id)
        return rotation

    async def end(self, session_id: UUID, now: datetime) -> None:
        """End the session and let every process know; ending it twice is no error."""
        statement = (
            sa.update(sessions)
            .where(sessions.c.id == session_id, sessions.c.ended_at.is_(None))
            .values(ended_at=now)
        )
        async with self._database.transaction() as connection:
            await connection.execute(statement)
            await revoke(connection, session_id, now)
        await self._feed.announce(session_id)


async def _write(connection: AsyncConnection, session: Session) -> None:
    values: Mapping[str, Any] = asdict(session)
    changed = {name: value for name, value in values.items() if name != "id"}
    await connection.execute(
        sa.update(sessions).where(sessions.c.id == session.id).values(changed)
    )
    if session.ended_at:
        await revoke(connection, session.id, session.ended_at)
