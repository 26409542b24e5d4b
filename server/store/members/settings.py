"""Settings in Postgres."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.errors import EtagMismatch, UserNotFound
from server.domain.members.settings import Theme, UserSettings, Visibility
from server.store.accounts.user_reads import NOT_DELETED
from server.store.change_records import audit_change
from server.store.connections.connect import Database
from server.store.mapping import columns_of, entity_of
from server.store.tables import user_settings as table
from server.store.tables import users

_SETTINGS = columns_of(UserSettings, table)


class PostgresSettings:
    """Stores settings."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def by_user(self, user_id: int) -> UserSettings | None:
        """Return an account's settings, or None if it never wrote any."""
        async with self._database.reading() as connection:
            return await _read(connection, user_id)

    async def replace(
        self, user_id: int, settings: UserSettings, etag: str, now: datetime
    ) -> UserSettings:
        """Replace an account's settings; a non-empty `etag` must be the current one.

        Raises UserNotFound, EtagMismatch.
        """
        async with self._database.transaction() as connection:
            if not await _lock_owner(connection, user_id):
                raise UserNotFound(user_id)
            before = await _read(connection, user_id) or UserSettings()
            if etag and etag != before.etag:
                raise EtagMismatch(before.etag)
            if before.version and replace(settings, version=before.version) == before:
                return before
            written = replace(settings, version=before.version + 1)
            await _write(connection, user_id, written, now)
        return written

    async def turn_off(
        self, user_id: int, settings: Collection[str], now: datetime
    ) -> None:
        """Turn settings of a member off; those that are off stay as they are."""
        columns = [table.c[name] for name in settings]
        values: dict[str, object] = {column.name: False for column in columns}
        statement = (
            sa.update(table)
            .where(table.c.user_id == user_id, sa.or_(*columns))
            .values(values | {"version": table.c.version + 1, "updated_at": now})
        )
        async with self._database.transaction() as connection:
            await _lock_owner(connection, user_id)
            await connection.execute(statement)
            await audit_change(connection, user_id)


async def _lock_owner(connection: AsyncConnection, user_id: int) -> bool:
    """Lock the account, and so settings that do not exist yet; False without one."""
    owner = sa.select(users.c.id).where(users.c.id == user_id, NOT_DELETED)
    locked = await connection.execute(owner.with_for_update(key_share=True))
    return locked.first() is not None


async def _read(connection: AsyncConnection, user_id: int) -> UserSettings | None:
    query = sa.select(*_SETTINGS).where(table.c.user_id == user_id)
    row = (await connection.execute(query)).first()
    if row is None:
        return None
    return entity_of(
        UserSettings,
        row,
        theme=Theme(row.theme),
        visibility=Visibility(row.visibility),
    )


async def _write(
    connection: AsyncConnection, user_id: int, settings: UserSettings, now: datetime
) -> None:
    values = asdict(settings) | {"updated_at": now}
    statement = insert(table).values(user_id=user_id, **values)
    await connection.execute(
        statement.on_conflict_do_update(index_elements=[table.c.user_id], set_=values)
    )
