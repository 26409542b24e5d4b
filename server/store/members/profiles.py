"""Profiles in Postgres."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.edits import Edit
from server.domain.errors import (
    EtagMismatch,
    ProfileExists,
    ProfileNotFound,
    UserNotFound,
)
from server.domain.idempotency import IdempotencyRecord
from server.domain.members.profiles import Profile
from server.domain.members.settings import Visibility
from server.store import idempotent_responses
from server.store.accounts.user_reads import NOT_DELETED
from server.store.connections.connect import Database
from server.store.mapping import columns_of, entity_of
from server.store.tables import user_profiles as table
from server.store.tables import user_settings, users
from server.store.write_transaction import ConstraintErrors, write_transaction

_PROFILE = columns_of(Profile, table)
_PRIVATE = sa.exists().where(
    user_settings.c.user_id == table.c.user_id,
    user_settings.c.visibility == Visibility.PRIVATE,
)


class PostgresProfiles:
    """Stores profiles. Those of deleted accounts are not found."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self, profile: Profile, idempotency: IdempotencyRecord[Profile] | None = None
    ) -> Profile:
        """Write a profile. Raises ProfileExists, UserNotFound, ResponseExists."""
        values = asdict(profile)
        owner = sa.select(
            *(sa.literal(value, table.c[name].type) for name, value in values.items())
        ).where(users.c.id == profile.user_id, NOT_DELETED)
        statement = (
            sa.insert(table).from_select(list(values), owner).returning(*_PROFILE)
        )
        violated: ConstraintErrors = {
            "pk_user_profiles": partial(ProfileExists, profile.user_id),
            "fk_user_profiles_user_id": partial(UserNotFound, profile.user_id),
        }
        async with write_transaction(
            self._database, idempotency, violated
        ) as connection:
            row = (await connection.execute(statement)).first()
            if row is None:
                raise UserNotFound(profile.user_id)
            written = entity_of(Profile, row)
            if idempotency:
                await idempotent_responses.write(
                    connection, idempotency, written, about=[profile.user_id]
                )
        return written

    async def by_user(self, user_id: int, *, include_private: bool) -> Profile | None:
        """Return an account's profile, or None; a private one if `include_private`."""
        query = _select(user_id)
        if not include_private:
            query = query.where(~_PRIVATE)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return entity_of(Profile, row) if row else None

    async def edit(
        self,
        user_id: int,
        edit: Edit,
        idempotency: IdempotencyRecord[Profile] | None = None,
    ) -> Profile:
        """Change a profile. Raises ProfileNotFound, EtagMismatch, ResponseExists."""
        async with write_transaction(self._database, idempotency, {}) as connection:
            before = await _locked(connection, user_id)
            if edit.etag and edit.etag != before.etag:
                raise EtagMismatch(before.etag)
            profile = await _changed(connection, before, edit)
            if idempotency:
                await idempotent_responses.write(
                    connection, idempotency, profile, about=[user_id]
                )
        return profile


async def _locked(connection: AsyncConnection, user_id: int) -> Profile:
    query = _select(user_id).with_for_update(of=table)
    row = (await connection.execute(query)).first()
    if row is None:
        raise ProfileNotFound(user_id)
    return entity_of(Profile, row)


def _select(user_id: int) -> sa.Select[Any]:
    query = sa.select(*_PROFILE).join_from(table, users)
    return query.where(table.c.user_id == user_id, NOT_DELETED)


async def _changed(connection: AsyncConnection, before: Profile, edit: Edit) -> Profile:
    values = edit.changes(before)
    if not values:
        return before
    statement = (
        sa.update(table)
        .where(table.c.user_id == before.user_id)
        .values(**values, updated_at=edit.now, version=table.c.version + 1)
        .returning(*_PROFILE)
    )
    return entity_of(Profile, (await connection.execute(statement)).one())
