"""Making many accounts in Postgres, by one statement however many there are."""

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
from server.store.connect import Database
from server.store.outbox import enqueue
from server.store.tables import Moment, users

_LOCK = 7_061_003  # batches that share names in another order would deadlock
# a type with a length would cut what is longer, without a word
_WRITTEN: dict[str, sa.types.TypeEngine[Any]] = {
    "email": sa.Text(),
    "username": sa.Text(),
    "username_folded": sa.Text(),
    "hashed_password": sa.Text(),
    "role": sa.SmallInteger(),
    "created_at": Moment,
}
Key = tuple[str, str]


class PostgresUserBatches:
    """Writes many accounts; unique constraints decide, row by row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_all(
        self,
        rows: Sequence[NewUser | AcademyError],
        idempotency: IdempotencyRecord[Outcomes] | None = None,
    ) -> Outcomes:
        """Write accounts in one transaction, and the answer that `once` makes of it.

        What is refused already stays so; a taken name or address, in the same batch
        too, refuses its row alone. Raises AnswerExists.
        """
        wanted = [row for row in rows if isinstance(row, NewUser)]
        async with self._database.transaction() as connection:
            if idempotency:
                await idempotent_responses.claim(connection, idempotency)
            made = await _insert(connection, wanted)
            about = [user.id for user in made.values()]
            taken = await _taken_addresses(
                connection, [row.email for row in wanted if _key(row) not in made]
            )
            outcomes = [
                _outcome(row, made, taken) if isinstance(row, NewUser) else row
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
    """Write, in their order, the rows whose names nobody has; give the accounts."""
    if not rows:
        return {}
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    values = zip(*map(_values, rows), strict=True)
    arrays = [
        sa.literal(list(column), ARRAY(kind))
        for column, kind in zip(values, _WRITTEN.values(), strict=True)
    ]
    names = list(_WRITTEN)
    given = (
        sa.func.unnest(*arrays)
        .table_valued(*names, with_ordinality="place", name="given")
        .render_derived()
    )
    shown = [given.c[name] for name in names]
    source = sa.select(*shown, given.c.created_at).order_by(given.c.place)
    statement = insert(users).from_select([*names, "updated_at"], source)
    statement = statement.on_conflict_do_nothing()
    made = await connection.execute(statement.returning(*USER_COLUMNS))
    new = [user_of(row) for row in made]
    await enqueue(connection, rows[0].created_at, *map(_told, new))
    return {(user.email, user.username): user for user in new}


def _told(user: User) -> NewEntry:
    return NewEntry(EventType.USER_CREATED, user.id, payload={"version": user.version})


def _values(row: NewUser) -> tuple[object, ...]:
    return (
        row.email,
        row.username,
        normalize_identifier(row.username),
        row.password_hash,
        row.role,
        row.created_at,
    )


async def _taken_addresses(
    connection: AsyncConnection, emails: Sequence[str]
) -> frozenset[str]:
    if not emails:
        return frozenset()
    query = sa.select(users.c.email).where(users.c.email.in_(emails))
    return frozenset((await connection.execute(query)).scalars())


def _outcome(
    row: NewUser, made: dict[Key, User], taken: frozenset[str]
) -> User | AcademyError:
    """Give the account, to the first of equal rows, or why there is none."""
    if user := made.pop(_key(row), None):
        return user
    return EmailTaken() if row.email in taken else UsernameTaken()
