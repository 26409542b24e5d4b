"""Creating many accounts in Postgres with one INSERT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.accounts.user_batches import Outcomes
from server.domain.accounts.users import NewUser, User, normalize_identifier
from server.domain.errors import AcademyError, EmailTaken, UsernameTaken
from server.domain.idempotency import IdempotencyRecord
from server.domain.outbox.entries import EventType, NewEntry
from server.store import idempotent_responses
from server.store.accounts.user_reads import USER_COLUMNS, user_of
from server.store.change_records import record
from server.store.connections.connect import Database
from server.store.tables import Moment, users

_BATCH_LOCK = 7_061_003  # without it, batches with the same names may deadlock
# types without a length: a cast to one with a length truncates silently
_COLUMN_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "email": sa.Text(),
    "username": sa.Text(),
    "username_folded": sa.Text(),
    "hashed_password": sa.Text(),
    "role": sa.SmallInteger(),
    "created_at": Moment,
}
Key = tuple[str, str]


class PostgresUserBatches:
    """Writes many accounts; unique constraints decide for each row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_all(
        self,
        rows: Sequence[NewUser | AcademyError],
        idempotency: IdempotencyRecord[Outcomes] | None = None,
    ) -> Outcomes:
        """Write accounts and the idempotent response in one transaction.

        Rows that are errors already stay errors. A username or e-mail address that is
        taken, also by an earlier row, fails its own row only. Raises ResponseExists.
        """
        new_users = [row for row in rows if isinstance(row, NewUser)]
        async with self._database.transaction() as connection:
            if idempotency:
                await idempotent_responses.claim(connection, idempotency)
            created = await _insert(connection, new_users)
            about = [user.id for user in created.values()]
            taken_emails = await _taken_emails(
                connection,
                [row.email for row in new_users if _key(row) not in created],
            )
            outcomes = [
                _outcome(row, created, taken_emails)
                if isinstance(row, NewUser)
                else row
                for row in rows
            ]
            if idempotency:
                await idempotent_responses.write(
                    connection, idempotency, outcomes, about
                )
        return outcomes


def _key(row: NewUser) -> Key:
    return row.email, row.username


async def _insert(
    connection: AsyncConnection, rows: Sequence[NewUser]
) -> dict[Key, User]:
    """Insert, in order, the rows whose names are not taken; return the accounts."""
    if not rows:
        return {}
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_BATCH_LOCK)))
    values = [_values(row) for row in rows]
    arrays = [
        sa.literal([row[name] for row in values], ARRAY(column_type))
        for name, column_type in _COLUMN_TYPES.items()
    ]
    names = list(_COLUMN_TYPES)
    batch = (
        sa.func.unnest(*arrays)
        .table_valued(*names, with_ordinality="position", name="batch")
        .render_derived()
    )
    columns = [batch.c[name] for name in names]
    source = sa.select(*columns, batch.c.created_at).order_by(batch.c.position)
    statement = insert(users).from_select([*names, "updated_at"], source)
    statement = statement.on_conflict_do_nothing()
    inserted = await connection.execute(statement.returning(*USER_COLUMNS))
    created = [user_of(row) for row in inserted]
    await record(connection, rows[0].created_at, *map(_created_event, created))
    return {(user.email, user.username): user for user in created}


def _created_event(user: User) -> NewEntry:
    return NewEntry(EventType.USER_CREATED, user.id, payload={"version": user.version})


def _values(row: NewUser) -> dict[str, object]:
    """Return the values of a row, by column."""
    return {
        "email": row.email,
        "username": row.username,
        "username_folded": normalize_identifier(row.username),
        "hashed_password": row.password_hash,
        "role": row.role,
        "created_at": row.created_at,
    }


async def _taken_emails(
    connection: AsyncConnection, emails: Sequence[str]
) -> frozenset[str]:
    if not emails:
        return frozenset()
    query = sa.select(users.c.email).where(users.c.email.in_(emails))
    return frozenset((await connection.execute(query)).scalars())


def _outcome(
    row: NewUser, created: dict[Key, User], taken_emails: frozenset[str]
) -> User | AcademyError:
    """Return the account, for the first of equal rows, or the error of the row."""
    if user := created.pop(_key(row), None):
        return user
    return EmailTaken() if row.email in taken_emails else UsernameTaken()
