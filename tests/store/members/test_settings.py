"""Settings in Postgres."""

import asyncio
from dataclasses import asdict

import sqlalchemy as sa

from server.domain.members.settings import UserSettings
from server.store.connections.connect import Database
from server.store.members.settings import PostgresSettings
from server.store.tables import user_settings
from server.store.tables import users as accounts
from tests.fakes import NOON
from tests.store.conftest import StoresUnderTest
from tests.store.test_users import new


async def test_turn_off_waits_for_settings_that_are_being_written(
    real_stores: StoresUnderTest, database: Database
) -> None:
    """The first settings of an account have no row yet that could be locked."""
    user = await real_stores.users.add(new("ana"))
    settings = PostgresSettings(database)
    written = UserSettings(digest=True, version=1)
    async with database.transaction() as connection:
        lock = sa.select(accounts.c.id).where(accounts.c.id == user.id)
        await connection.execute(lock.with_for_update())
        unsubscribing = asyncio.create_task(
            settings.turn_off(user.id, ["digest"], NOON)
        )
        done, _ = await asyncio.wait([unsubscribing], timeout=0.1)
        assert not done
        values = asdict(written) | {"user_id": user.id, "updated_at": NOON}
        await connection.execute(sa.insert(user_settings).values(values))
    await unsubscribing
    stored = await settings.by_user(user.id)
    assert stored is not None
    assert not stored.digest
