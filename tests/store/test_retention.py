"""Rows are deleted at the end of their retention, and erased accounts leave none."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
import sqlalchemy as sa

from server.domain.accounts.users import NewUser, Role, User
from server.domain.audit import AuditEvent
from server.domain.credentials.mailed_tokens import MailedToken, Purpose
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.sessions import Session
from server.domain.errors import UserNotFound
from server.domain.idempotency import IdempotencyRecord, RequestKey
from server.domain.outbox.entries import EventType, NewEntry
from server.store.accounts.erasure import Erasures, begin_erasure
from server.store.accounts.personal_data import PostgresPersonalData
from server.store.audit import PostgresAudit
from server.store.connect import Database, redis_client
from server.store.credentials.mailed_tokens import PostgresMailedTokens
from server.store.credentials.revocations import RevocationFeed
from server.store.outbox import PostgresOutbox
from server.store.retention import PostgresRetention
from server.store.tables import audit_events, metadata
from server.workers.retention import Retention
from tests.fakes import NOON, Clock
from tests.logs import captured_lines
from tests.store.conftest import Stores
from tests.store.counting import counted

USER_RETENTION = timedelta(days=30)
AUDIT_RETENTION = timedelta(days=400)
A_DAY = timedelta(days=1)
BATCH_SIZE = 1_000


class World:
    """The stores of one database, and its retention."""

    def __init__(self, stores: Stores, database: Database, redis_url: str) -> None:
        self.stores, self.database, self.clock = stores, database, Clock()
        self.redis = redis_client(redis_url)
        revocations = Revocations(self.clock)
        feed = RevocationFeed(database, self.redis, revocations, self.clock)
        self.erasures = Erasures(database, feed, BATCH_SIZE)
        self.retention = Retention(
            PostgresRetention(database, AUDIT_RETENTION, BATCH_SIZE),
            self.erasures,
            USER_RETENTION,
            self.clock,
        )
        self.personal_data = PostgresPersonalData(
            database, feed, lambda _: None, self.erasures
        )
        self.tokens = PostgresMailedTokens(database, feed, lambda _: None)
        self.outbox = PostgresOutbox(database)

    async def sweep(self, after: timedelta) -> None:
        """Sweep at this time after noon."""
        self.clock.now = NOON + after
        await self.retention.sweep()

    async def rows(self, table: str) -> Sequence[sa.Row[Any]]:
        query = sa.select(metadata.tables[table])
        async with self.database.reading() as connection:
            return (await connection.execute(query)).all()

    async def signed_up(self, name: str = "ana", idempotency: Any = None) -> User:
        new = NewUser(f"{name}@x.co", name, "hash", Role.STUDENT, NOON)
        return await self.stores.users.add(new, idempotency)

    async def logged_in(self, user: User, lasting: timedelta = A_DAY) -> Session:
        session = Session(
            id=uuid4(),
            user_id=user.id,
            token_hash=b"1",
            parent_hash=b"",
            nonce=b"",
            created_at=NOON,
            last_used_at=NOON,
            expires_at=NOON + lasting,
            address="192.0.2.1",
            device="Phone",
        )
        assert await self.stores.sessions.add(session, user.version)
        return session

    async def mailed(self, user: User) -> None:
        """Write a token, as the dispatcher does when it sends the mail."""
        await self.outbox.add(NOON, NewEntry(EventType.VERIFICATION, user.id))
        entry = max(row.id for row in await self.rows("outbox"))
        token = MailedToken(
            uuid4().bytes, Purpose.VERIFY, user.id, user.email, entry, NOON, NOON
        )
        minted = replace(token, expires_at=NOON + A_DAY)
        assert await self.tokens.mint(minted, None)


@pytest_asyncio.fixture
async def world(
    real_stores: Stores, database: Database, redis_url: str
) -> AsyncIterator[World]:
    world = World(real_stores, database, redis_url)
    yield world
    await world.redis.aclose()


def idempotency(caller: str) -> IdempotencyRecord[User]:
    key = RequestKey(caller, "/x/Y", "id")
    return IdempotencyRecord(key, b"f", NOON, lambda user: user.email.encode())


async def test_retention_erases_deleted_users(world: World) -> None:
    """R30: the names can be used again, the id cannot."""
    ana, bea = await world.signed_up(), await world.signed_up("bea")
    await world.stores.users.delete(ana.id, NOON)
    await world.sweep(USER_RETENTION)
    assert {row.id for row in await world.rows("users")} == {ana.id, bea.id}
    await world.sweep(USER_RETENTION + timedelta(seconds=1))
    assert [row.id for row in await world.rows("users")] == [bea.id]
    again = await world.signed_up()
    assert again.id > bea.id


async def test_erasure_leaves_nothing_personal_in_any_table(world: World) -> None:
    """Audit events and the events of the account keep the id only."""
    ana = await world.signed_up("zzana", idempotency("anonymous"))
    await world.logged_in(ana)
    await world.mailed(ana)
    await world.outbox.add(
        NOON,
        NewEntry(EventType.PASSWORD_RESET, address="zzana"),
        NewEntry(EventType.PASSWORD_RESET, address="zzana@x.co"),
        NewEntry(EventType.NEW_DEVICE, ana.id, payload={"address": "192.0.2.1"}),
    )
    event = AuditEvent(0, NOON, "x", f"user:{ana.id}", ana.id, "192.0.2.1", "OK", "r")
    audit = PostgresAudit(world.database)
    await audit.add(event)
    await audit.add(replace(event, user_id=0))
    await world.stores.users.delete(ana.id, NOON)
    await world.sweep(USER_RETENTION + A_DAY)
    values_by_table = {
        name: [str(value) for row in await world.rows(name) for value in row]
        for name in metadata.tables
    }
    for name, values in values_by_table.items():
        assert not [v for v in values if "zzana" in v or "192.0.2" in v], name
    events = [row for row in await world.rows("outbox") if row.user_id == ana.id]
    assert [row.kind for row in events][-1] == "user.erased"
    assert not [row for row in events if row.kind.startswith("mail.")]
    assert [row.user_id for row in await world.rows("audit_events")] == [ana.id, 0]


async def test_retention_deletes_sessions_after_30_days(world: World) -> None:
    """Until then they distinguish a known device from a new one."""
    ana = await world.signed_up()
    expired, ended = await world.logged_in(ana), await world.logged_in(ana, 99 * A_DAY)
    lasting = await world.logged_in(ana, 99 * A_DAY)
    await world.stores.sessions.end(ended.id, NOON)
    await world.sweep(29 * A_DAY)
    assert len(await world.rows("sessions")) == 3
    await world.sweep(32 * A_DAY)
    assert [row.id for row in await world.rows("sessions")] == [lasting.id]
    assert expired.id != lasting.id


async def test_retention_deletes_revocations_when_their_tokens_have_expired(
    world: World,
) -> None:
    ana = await world.signed_up()
    await world.stores.sessions.end((await world.logged_in(ana)).id, NOON)
    await world.sweep(timedelta(minutes=15))
    assert len(await world.rows("revocations")) == 1
    await world.sweep(timedelta(minutes=17))
    assert not await world.rows("revocations")


async def test_retention_deletes_mailed_tokens_a_day_after_expiry(world: World) -> None:
    await world.mailed(await world.signed_up())
    await world.sweep(2 * A_DAY)
    assert len(await world.rows("mailed_tokens")) == 1
    await world.sweep(2 * A_DAY + timedelta(seconds=1))
    assert not await world.rows("mailed_tokens")


async def test_retention_deletes_idempotent_responses_after_a_day(world: World) -> None:
    await world.signed_up(idempotency=idempotency("anonymous"))
    await world.sweep(A_DAY)
    assert len(await world.rows("request_answers")) == 1
    await world.sweep(A_DAY + timedelta(seconds=1))
    assert not await world.rows("request_answers")


async def test_retention_deletes_finished_outbox_entries(world: World) -> None:
    """Delivered ones after 7 days, dead letters after 30."""
    await world.signed_up()
    created, welcome = sorted(row.id for row in await world.rows("outbox"))
    await world.outbox.delivered(created, NOON)
    await world.outbox.dead_letter(welcome, NOON, "SMTPDataError")
    await world.sweep(7 * A_DAY)
    assert len(await world.rows("outbox")) == 2
    await world.sweep(7 * A_DAY + timedelta(seconds=1))
    assert [row.id for row in await world.rows("outbox")] == [welcome]
    await world.sweep(30 * A_DAY + timedelta(seconds=1))
    assert not await world.rows("outbox")


async def test_retention_deletes_several_batches_in_one_sweep(world: World) -> None:
    table = metadata.tables["revocations"]
    rows = [{"session_id": uuid4(), "ended_at": NOON} for _ in range(BATCH_SIZE + 1)]
    async with world.database.transaction() as connection:
        await connection.execute(sa.insert(table), rows)
    await world.sweep(A_DAY)
    assert not await world.rows("revocations")


async def test_retention_deletes_audit_events_after_their_setting(
    world: World,
) -> None:
    event = AuditEvent(0, NOON, "x", "anonymous", 0, "192.0.2.1", "OK", "r")
    await PostgresAudit(world.database).add(event)
    await world.sweep(AUDIT_RETENTION)
    assert len(await world.rows("audit_events")) == 1
    await world.sweep(AUDIT_RETENTION + timedelta(seconds=1))
    assert not await world.rows("audit_events")


EVENTS = 20_500


async def with_many_events(world: World, user: User) -> None:
    """Insert events about a user, by the user, and by the user about others."""
    rows = (
        "insert into audit_events"
        " (at, event, actor, user_id, address, outcome, request_id)"
        " select now(), 'x', case n % 2 when 0 then :actor else 'anonymous' end,"
        " case n % 4 when 0 then 0 else :id end, '192.0.2.1', 'OK', 'r'"
        " from generate_series(1, :count) n"
    )
    values = {"actor": f"user:{user.id}", "id": user.id, "count": EVENTS}
    async with world.database.transaction() as connection:
        await connection.execute(sa.text(rows), values)


async def addresses_left(world: World) -> int:
    query = sa.select(sa.func.count()).where(audit_events.c.address != "")
    async with world.database.reading() as connection:
        return int((await connection.execute(query)).scalar_one())


async def test_erasure_continues_where_it_stopped(world: World) -> None:
    """Each slice commits; no sweep reads the events of an earlier one again."""
    ana = await world.signed_up()
    await with_many_events(world, ana)
    await world.stores.users.delete(ana.id, NOON)
    world.retention.budget = timedelta(0)
    left = [EVENTS]
    for _ in range(2 * EVENTS // BATCH_SIZE):
        await world.sweep(USER_RETENTION + A_DAY)
        assert not await world.rows("users")
        if not await world.rows("erasures"):
            break
        assert world.retention.interval() < timedelta(minutes=1)
        left.append(await addresses_left(world))
        assert left[-2] - left[-1] <= BATCH_SIZE
    assert len(left) > EVENTS / BATCH_SIZE
    assert await addresses_left(world) == 0
    assert world.retention.interval() == timedelta(minutes=1)
    kinds = [row.kind for row in await world.rows("outbox")]
    assert kinds.count("user.erased") == 1


async def test_erasure_continues_in_another_process(
    world: World, real_stores: Stores, database: Database, redis_url: str
) -> None:
    """Nothing but the database says where it stopped."""
    ana = await world.signed_up()
    await with_many_events(world, ana)
    await world.stores.users.delete(ana.id, NOON)
    world.retention.budget = timedelta(0)
    await world.sweep(USER_RETENTION + A_DAY)
    assert 0 < await addresses_left(world) < EVENTS
    other = World(real_stores, database, redis_url)
    await other.sweep(USER_RETENTION + A_DAY)
    await other.redis.aclose()
    assert await addresses_left(world) == 0
    assert not await world.rows("erasures")


async def refuse_deletion(world: World, user_id: int) -> None:
    """Make Postgres refuse to delete a user."""
    async with world.database.transaction() as connection:
        await connection.execute(
            sa.text(
                "create function refuse() returns trigger language plpgsql as"
                " $$ begin raise exception 'refused'; end $$"
            )
        )
        await connection.execute(
            sa.text(
                "create trigger refuse before delete on users for each row"
                f" when (old.id = {user_id}) execute function refuse()"
            )
        )


async def test_failing_erasure_does_not_delay_the_next(world: World) -> None:
    """It is logged with the id, and tried again by the next sweep."""
    ana, bea = await world.signed_up(), await world.signed_up("bea")
    await refuse_deletion(world, ana.id)
    for user in (ana, bea):
        await world.stores.users.delete(user.id, NOON)
    with captured_lines(event="retention failed") as lines:
        await world.sweep(USER_RETENTION + A_DAY)
    assert [row.id for row in await world.rows("users")] == [ana.id]
    assert [line["user_id"] for line in lines] == [ana.id]
    async with world.database.transaction() as connection:
        await connection.execute(sa.text("drop trigger refuse on users"))
    await world.sweep(USER_RETENTION + A_DAY)
    assert not await world.rows("users")


async def test_slow_erasure_does_not_delay_the_next(world: World) -> None:
    ana, bea = await world.signed_up(), await world.signed_up("bea")
    await with_many_events(world, ana)
    for user in (ana, bea):
        await world.stores.users.delete(user.id, NOON)
    world.retention.budget = timedelta(0)
    await world.sweep(USER_RETENTION + A_DAY)
    assert [row.account_id for row in await world.rows("erasures")] == [ana.id]
    assert not await world.rows("users")


async def test_erase_call_removes_all_but_audit_addresses_at_once(
    world: World,
) -> None:
    """The rest of the addresses is cleared in the background, which is woken."""
    ana = await world.signed_up("zzana", idempotency("anonymous"))
    await world.logged_in(ana)
    await world.mailed(ana)
    await with_many_events(world, ana)
    await world.personal_data.erase(ana.id, NOON, timedelta(0))
    assert 0 < await addresses_left(world) < EVENTS
    assert world.erasures.wake.is_set()
    for name in metadata.tables:
        values = [str(value) for row in await world.rows(name) for value in row]
        assert not [value for value in values if "zzana" in value], name
    for name in ("sessions", "mailed_tokens", "request_answers"):
        assert not await world.rows(name)
    assert await world.stores.users.by_id(ana.id) is None
    assert not await world.personal_data.exists(ana.id)
    again = await world.signed_up("zzana")
    assert again.id != ana.id
    await world.sweep(A_DAY)
    assert await addresses_left(world) == 0
    assert not await world.rows("erasures")
    assert [row.id for row in await world.rows("users")] == [again.id]


async def test_interrupted_erase_call_can_be_repeated(world: World) -> None:
    """It continues; one event is written, and afterwards the account is unknown."""
    ana = await world.signed_up()
    await refuse_deletion(world, ana.id)
    with pytest.raises(sa.exc.DBAPIError):
        await world.personal_data.erase(ana.id, NOON)
    assert await world.stores.users.by_id(ana.id) is None
    async with world.database.transaction() as connection:
        await connection.execute(sa.text("drop trigger refuse on users"))
    await world.personal_data.erase(ana.id, NOON)
    kinds = [row.kind for row in await world.rows("outbox")]
    assert kinds.count("user.erased") == 1
    assert not await world.rows("users")
    assert not await world.rows("erasures")
    with pytest.raises(UserNotFound):
        await world.personal_data.erase(ana.id, NOON)


async def test_account_with_erasure_begun_cannot_be_undeleted(world: World) -> None:
    ana = await world.signed_up()
    async with world.database.transaction() as connection:
        await begin_erasure(connection, ana.id, NOON)
    with pytest.raises(UserNotFound):
        await world.stores.users.undelete(ana.id, NOON - USER_RETENTION, NOON)


async def test_account_undeleted_meanwhile_is_not_erased(world: World) -> None:
    """Between the reading of what is due and its erasure an admin may undelete."""
    ana = await world.signed_up()
    erased = await world.erasures.erase(
        ana.id, NOON, NOON - USER_RETENTION, timedelta(minutes=1)
    )
    assert erased
    assert (await world.stores.users.by_id(ana.id)) == ana


async def test_erasure_deletes_rows_of_account_in_batches(
    world: World, database: Database
) -> None:
    """No statement touches more rows than a batch."""
    ana = await world.signed_up()
    sessions = (
        "insert into sessions (id, user_id, token_hash, parent_hash, nonce, created_at,"
        " last_used_at, expires_at, address, device, ended_at)"
        " select gen_random_uuid(), :id, '', '', '', :now, :now, :now, '', '', :now"
        " from generate_series(1, :count)"
    )
    values = {"id": ana.id, "now": NOON, "count": 2 * BATCH_SIZE + 1}
    async with database.transaction() as connection:
        await connection.execute(sa.text(sessions), values)
    with counted(database) as statements:
        await world.personal_data.erase(ana.id, NOON)
    deletes = [s for s in statements if s.startswith("WITH batch") and "sessions" in s]
    assert len(deletes) == 3
    assert not await world.rows("sessions")
