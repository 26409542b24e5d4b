"""Exports in batches: of every account, and of the personal data of one."""

import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio
import sqlalchemy as sa

from server.domain.accounts.personal_data import ExportBatch
from server.domain.accounts.user_export import UserExport
from server.domain.accounts.users import User
from server.domain.credentials.revocations import Revocations
from server.rpc.accounts.export_document import document_parts
from server.store.accounts.erasure import Erasures
from server.store.accounts.personal_data import BATCH_SIZE, PostgresPersonalData
from server.store.accounts.users import PostgresUsers
from server.store.connections.connect import Database
from server.store.credentials.revocations import RevocationFeed
from server.store.redis.redis_client import redis_client
from tests.fakes import NOON, Clock
from tests.store.conftest import StoresUnderTest
from tests.store.counting import counted
from tests.store.test_users import new

MIB = 1024 * 1024


async def test_export_of_accounts_skips_and_repeats_none(
    stores: StoresUnderTest,
) -> None:
    """Accounts that exist throughout are exported once, despite deletions of others."""
    users = stores.users
    added = [await users.add(new(f"user{n}")) for n in range(6)]
    await users.delete(added[0].id, added[0].created_at)
    stream = UserExport(users, batch_size=2).stream(0)
    ids = [(await anext(stream)).id]
    await users.delete(added[3].id, added[0].created_at)
    late = await users.add(new("late"))
    ids += [user.id async for user in stream]
    assert ids == [*(added[n].id for n in (1, 2, 4, 5)), late.id]


async def test_export_of_accounts_holds_no_connection_between_batches(
    real_stores: StoresUnderTest, database: Database
) -> None:
    users = real_stores.users
    assert isinstance(users, PostgresUsers)
    for n in range(3):
        await users.add(new(f"user{n}"))
    stream = UserExport(users, batch_size=1).stream(0)
    await anext(stream)
    assert connections_in_use(database) == 0
    assert len([user async for user in stream]) == 2


def connections_in_use(database: Database) -> int:
    pool: Any = database.engine.pool
    in_use: int = pool.checkedout()
    return in_use


@pytest_asyncio.fixture
async def personal_data(
    database: Database, redis_url: str
) -> AsyncIterator[PostgresPersonalData]:
    redis, clock = redis_client(redis_url), Clock(NOON)
    feed = RevocationFeed(database, redis, Revocations(clock), clock)
    yield PostgresPersonalData(database, feed, lambda _: None, Erasures(database, feed))
    await redis.aclose()


async def write_events(database: Database, user: User, count: int) -> None:
    """Write audit events: every second one by the user, the others about them."""
    statement = sa.text(
        "insert into audit_events (at, event, actor, user_id, address, outcome,"
        " request_id) select now(), 'e', case when n % 2 = 0 then :actor else 'x' end,"
        " case when n % 2 = 0 then 0 else :user_id end, '', 'OK', n::text"
        " from generate_series(1, :count) n"
    ).bindparams(sa.bindparam("user_id", user.id, sa.BigInteger))
    values = {"actor": f"user:{user.id}", "count": count}
    async with database.transaction() as connection:
        await connection.execute(statement, values)


async def rows_by_section(
    batches: AsyncGenerator[ExportBatch, None],
) -> dict[str, list[Any]]:
    sections: dict[str, list[Any]] = {}
    async for batch in batches:
        assert len(batch.rows) <= BATCH_SIZE
        sections.setdefault(batch.section, []).extend(batch.rows)
    return sections


@pytest.mark.parametrize(
    "count", [0, 1, BATCH_SIZE * 2, BATCH_SIZE * 4, BATCH_SIZE * 5 + 3]
)
async def test_personal_data_has_every_row_once(
    real_stores: StoresUnderTest,
    database: Database,
    personal_data: PostgresPersonalData,
    count: int,
) -> None:
    """Whatever the number of batches; other users' rows are left out."""
    ana = await real_stores.users.add(new("ana"))
    bea = await real_stores.users.add(new("bea"))
    await write_events(database, ana, count)
    await write_events(database, bea, 3)
    sections = await rows_by_section(personal_data.export(ana.id))
    events = [row["request_id"] for row in sections["audit_events"]]
    assert sorted(map(int, events)) == list(range(1, count + 1))
    assert [row["id"] for row in sections["users"]] == [ana.id]
    assert sections["sessions"] == []


async def test_personal_data_is_read_as_the_reader_asks_for_it(
    real_stores: StoresUnderTest,
    database: Database,
    personal_data: PostgresPersonalData,
) -> None:
    """No connection is held between batches, and none is read ahead."""
    ana = await real_stores.users.add(new("ana"))
    await write_events(database, ana, BATCH_SIZE * 6)
    with counted(database) as statements:
        async for batch in personal_data.export(ana.id):
            assert connections_in_use(database) == 0
            if batch.section == "audit_events" and batch.rows:
                break
    of_events = [text for text in statements if "FROM audit_events" in text]
    assert len(of_events) == 1


async def test_personal_data_passes_through_bounded_memory(
    real_stores: StoresUnderTest,
    database: Database,
    personal_data: PostgresPersonalData,
) -> None:
    """A document of 60 MiB needs a fraction of it at any time."""
    ana = await real_stores.users.add(new("ana"))
    statement = sa.text(
        "insert into posts (user_id, title, body, state, created_at, updated_at)"
        " select :user_id, 't', repeat('\u00e9', 50000), 2, now(), now()"
        " from generate_series(1, 600)"
    )
    async with database.transaction() as connection:
        await connection.execute(statement, {"user_id": ana.id})
    total = 0
    tracemalloc.start()
    try:
        async for part in document_parts(personal_data.export(ana.id), 255 * 1024):
            total += len(part.data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total > 55 * MIB
    assert peak < 16 * MIB


@pytest.mark.parametrize("max_bytes", [1, 7, 64, 10**6])
async def test_document_parts_are_slices_of_one_document(max_bytes: int) -> None:
    """Each belongs to one section, within the limit, wherever the text is cut."""
    text = "\u00e9\n\u2028" * 9

    async def batches() -> AsyncGenerator[ExportBatch, None]:
        yield ExportBatch("empty_one", [])
        yield ExportBatch("some_rows", [])
        yield ExportBatch("some_rows", [{"user_id": 2**62, "is_on": True}])
        yield ExportBatch("some_rows", [{"told_at": NOON, "of": {"a_b": [1, None]}}])
        yield ExportBatch("last", [{"text": text}])

    parts = [part async for part in document_parts(batches(), max_bytes)]
    assert max(len(part.data) for part in parts) <= max_bytes
    assert all(part.data for part in parts)
    assert orjson.loads(b"".join(part.data for part in parts)) == {
        "emptyOne": [],
        "someRows": [
            {"userId": str(2**62), "isOn": True},
            {"toldAt": NOON.isoformat(), "of": {"aB": ["1", None]}},
        ],
        "last": [{"text": text}],
    }
    sections = [part.section for part in parts]
    assert list(dict.fromkeys(sections)) == ["emptyOne", "someRows", "last"]
