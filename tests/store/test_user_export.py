"""Exporting everybody, chunk by chunk, from every store."""

from typing import Any

from server.domain.accounts.user_export import UserExport
from server.store.accounts.users import PostgresUsers
from server.store.connect import Database
from tests.store.conftest import Stores
from tests.store.test_users import new


async def test_others_come_and_go_meanwhile(stores: Stores) -> None:
    """Who is there all the while is given once; no chunk repeats or skips."""
    users = stores.users
    made = [await users.add(new(f"user{n}")) for n in range(6)]
    await users.delete(made[0].id, made[0].created_at)
    stream = UserExport(users, chunk=2).stream(0)
    seen = [(await anext(stream)).id]
    await users.delete(made[3].id, made[0].created_at)
    late = await users.add(new("late"))
    seen += [user.id async for user in stream]
    assert seen == [*(made[n].id for n in (1, 2, 4, 5)), late.id]


async def test_no_connection_is_held_while_the_reader_is_slow(
    real_stores: Stores, database: Database
) -> None:
    users = real_stores.users
    assert isinstance(users, PostgresUsers)
    for n in range(3):
        await users.add(new(f"user{n}"))
    stream = UserExport(users, chunk=1).stream(0)
    await anext(stream)
    pool: Any = database.engine.pool
    assert pool.checkedout() == 0
    assert len([user async for user in stream]) == 2
