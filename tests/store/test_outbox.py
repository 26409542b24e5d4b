"""The outbox: written with the change, claimed by one, delivered or dead."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa

from server.domain.errors import EmailTaken, LastAdmin
from server.domain.users import NewUser, Role, UserEdit
from server.store.connect import Database
from server.store.tables import outbox
from tests.fakes import NOON
from tests.store.conftest import Stores

LONG_AGO = NOON - timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Written:
    """A row as it stands there."""

    kind: str
    user_id: int | None
    version: int


async def written(database: Database) -> list[Written]:
    """Give the events, in the order in which streams read them."""
    query = (
        sa.select(outbox)
        .where(outbox.c.kind.like("user.%"))
        .order_by(outbox.c.written_by, outbox.c.id)
    )
    async with database.reading() as connection:
        rows = (await connection.execute(query)).all()
    return [Written(row.kind, row.user_id, row.payload["version"]) for row in rows]


def new(name: str, role: Role = Role.STUDENT) -> NewUser:
    return NewUser(f"{name}@example.com", name, "hash", role, NOON)


async def test_every_change_of_an_account_is_told(
    real_stores: Stores, database: Database
) -> None:
    """By an event in its own transaction, which says the version it led to."""
    users, sessions = real_stores.users, real_stores.sessions
    ana = await users.add(new("ana"))
    await users.edit(ana.id, UserEdit({"username": "anna"}, "", NOON))
    await sessions.change_password(ana.id, "hash", uuid4(), NOON)
    await users.delete(ana.id, NOON)
    await users.undelete(ana.id, LONG_AGO, NOON)
    kinds = ["created", "updated", "updated", "deleted", "undeleted"]
    assert await written(database) == [
        Written(f"user.{kind}", ana.id, version)
        for version, kind in enumerate(kinds, start=1)
    ]


async def test_what_is_refused_or_changes_nothing_is_not_told(
    real_stores: Stores, database: Database
) -> None:
    """An event without its change would be an invention."""
    ana = await real_stores.users.add(new("ana", Role.ADMIN))
    with pytest.raises(EmailTaken):
        await real_stores.users.add(
            NewUser("ana@example.com", "bea", "", Role.STUDENT, NOON)
        )
    await real_stores.users.edit(ana.id, UserEdit({"username": "ana"}, "", NOON))
    with pytest.raises(LastAdmin):
        await real_stores.users.delete(ana.id, NOON)
    assert await written(database) == [Written("user.created", ana.id, 1)]
